"""PVTv2's table: one embedding per stage.

The spatial-reduction convolution maps C to C, and its output is not the residual stream. It is still tied to the
embedding, so that a pruned network keeps the stock structure.
"""

from __future__ import annotations

from collections.abc import Iterator

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.table import (
    BACKBONE,
    Slot,
    Table,
    Term,
    block_embed_slots,
    block_name,
    columns,
    head_columns,
    kernel_sides,
    rows,
    stage_name,
)


class PVTv2Table(Table):
    """See ``Table``."""

    def embed_slots(self, arch: ArchSpec, i: int) -> Iterator[Slot]:
        """Everything in the stage that reads or writes its tokens, and the next patch embedding or the head."""
        stage = f'stages.{i}'
        yield from rows(f'{stage}.patch_embed.proj')
        yield from rows(f'{stage}.patch_embed.norm')
        for j in range(arch.depths[i]):
            yield from block_embed_slots(arch, i, j)
            if arch.sr_ratios[i] > 1:
                attn = f'{block_name(i, j)}.attn'
                yield from rows(f'{attn}.sr')
                yield from columns(f'{attn}.sr')
                yield from rows(f'{attn}.sr_norm')
        yield from rows(f'{stage}.norm')
        if i + 1 < arch.num_stages:
            yield from columns(f'stages.{i + 1}.patch_embed.proj')
        else:
            yield from head_columns()

    def entry_layers(self, arch: ArchSpec, i: int) -> tuple[str, ...]:
        return ('proj', 'norm') if i else ()  # the first reads the picture, of which nothing was cut

    def stream_readers(self, arch: ArchSpec, i: int) -> dict[str, list[str]]:
        raise ValueError(
            "embed = 'rotate': a stage of a PVTv2 starts with a LayerNorm whose gains write to the residual stream, so "
            "a rotation would change the network; take embed = 'channels'."
        )

    def mlp_hidden_slots(self, arch: ArchSpec, i: int, j: int) -> Iterator[Slot]:
        """Row of fc1, its depth-wise filter, column of fc2."""
        mlp = f'{block_name(i, j)}.mlp'
        yield from rows(f'{mlp}.fc1')
        yield from rows(f'{mlp}.dwconv')
        yield from columns(f'{mlp}.fc2')

    def fixed_slots(self, arch: ArchSpec) -> Iterator[Slot]:
        yield from columns('stages.0.patch_embed.proj')
        for i, depth in enumerate(arch.depths):
            yield from kernel_sides(f'stages.{i}.patch_embed.proj')
            for j in range(depth):
                mlp = f'{block_name(i, j)}.mlp'
                yield Slot(f'{BACKBONE}{mlp}.dwconv.weight', 1)  # one input channel per group
                yield from kernel_sides(f'{mlp}.dwconv')
                if arch.sr_ratios[i] > 1:
                    yield from kernel_sides(f'{block_name(i, j)}.attn.sr')

    def stage_params(self, arch: ArchSpec, i: int) -> Iterator[Term]:
        yield Term(f'{stage_name(i)}.patch_embed.norm', 2, (f'{stage_name(i)}.embed',))

    def block_params(self, arch: ArchSpec, i: int, j: int) -> Iterator[Term]:
        """Spatial reduction with its norm, and the depth-wise filters with their biases."""
        block, embed = block_name(i, j), f'{stage_name(i)}.embed'
        if arch.sr_ratios[i] > 1:
            yield Term(f'{block}.attn.sr', arch.sr_ratios[i] ** 2, (embed, embed))
            yield Term(f'{block}.attn.sr', 1, (embed,))
            yield Term(f'{block}.attn.sr_norm', 2, (embed,))
        yield Term(f'{block}.mlp.dwconv', 10, (f'{block}.mlp_hidden',))

    def block_macs(self, arch: ArchSpec, i: int, j: int, tokens: int, seen: int) -> Iterator[Term]:
        block, embed = block_name(i, j), f'{stage_name(i)}.embed'
        if arch.sr_ratios[i] > 1:
            yield Term(f'{block}.attn.sr', seen * arch.sr_ratios[i] ** 2, (embed, embed))
        yield Term(f'{block}.mlp.dwconv', 9 * tokens, (f'{block}.mlp_hidden',))


TABLE = PVTv2Table()
