"""DeiT's table: one embedding through the whole network (UP-ViTs, sec. 3.2)."""

from __future__ import annotations

from collections.abc import Iterator

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.table import (
    BACKBONE,
    Slot,
    Table,
    Term,
    block_embed_slots,
    block_stream_readers,
    columns,
    head_columns,
    kernel_sides,
    rows,
    stage_name,
)


class DeiTTable(Table):
    """See ``Table``."""

    def embed_slots(self, arch: ArchSpec, i: int) -> Iterator[Slot]:
        """Patch embedding, class token, positions, norms, inputs of q, k, v, fc1, outputs of proj, fc2, the head."""
        yield Slot(f'{BACKBONE}cls_token', 2)
        yield Slot(f'{BACKBONE}pos_embed', 2)
        yield from rows(f'stages.{i}.patch_embed.proj')
        for j in range(arch.depths[i]):
            yield from block_embed_slots(i, j)
        yield from rows(f'stages.{i}.norm')
        yield from head_columns()

    def stream_readers(self, arch: ArchSpec, i: int) -> dict[str, list[str]]:
        readers = {f'{BACKBONE}{stage_name(i)}.norm': ['head.fc.weight']}
        for j in range(arch.depths[i]):
            readers |= block_stream_readers(i, j)
        return readers

    def fixed_slots(self, arch: ArchSpec) -> Iterator[Slot]:
        for name in ('cls_token', 'pos_embed'):
            yield Slot(f'{BACKBONE}{name}', 0)
            yield Slot(f'{BACKBONE}{name}', 1)
        yield from columns('stages.0.patch_embed.proj')
        yield from kernel_sides('stages.0.patch_embed.proj')

    def stage_params(self, arch: ArchSpec, i: int) -> Iterator[Term]:
        prefix, embed = arch.kind.num_prefix_tokens, f'{stage_name(i)}.embed'
        yield Term('cls_token', prefix, (embed,))
        yield Term('pos_embed', prefix + arch.pos_embed_grid**2, (embed,))


TABLE = DeiTTable()
