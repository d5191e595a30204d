"""PVTv2's table: one embedding per stage.

The spatial-reduction convolution maps C to C and its output is not the residual stream; it is tied to the embedding
all the same, so that a pruned network keeps the stock structure.
"""

from __future__ import annotations

from collections.abc import Iterator

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.table import (
    BACKBONE,
    Slot,
    block_embed_slots,
    block_name,
    columns,
    head_columns,
    kernel_sides,
    rows,
)


def embed_slots(arch: ArchSpec, i: int) -> Iterator[Slot]:
    """Everything in the stage that reads or writes its tokens, and the next patch embedding or the head."""
    stage = f'stages.{i}'
    yield from rows(f'{stage}.patch_embed.proj')
    yield from rows(f'{stage}.patch_embed.norm')
    for j in range(arch.depths[i]):
        yield from block_embed_slots(i, j)
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


def mlp_hidden_slots(i: int, j: int) -> Iterator[Slot]:
    """Row of fc1, its depth-wise filter, column of fc2."""
    mlp = f'{block_name(i, j)}.mlp'
    yield from rows(f'{mlp}.fc1')
    yield from rows(f'{mlp}.dwconv')
    yield from columns(f'{mlp}.fc2')


def fixed_slots(arch: ArchSpec) -> Iterator[Slot]:
    yield from columns('stages.0.patch_embed.proj')
    for i, depth in enumerate(arch.depths):
        yield from kernel_sides(f'stages.{i}.patch_embed.proj')
        for j in range(depth):
            mlp = f'{block_name(i, j)}.mlp'
            yield f'{BACKBONE}{mlp}.dwconv.weight', 1  # one input channel a group
            yield from kernel_sides(f'{mlp}.dwconv')
            if arch.sr_ratios[i] > 1:
                yield from kernel_sides(f'{block_name(i, j)}.attn.sr')
