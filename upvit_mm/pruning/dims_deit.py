"""DeiT's table: one embedding through the whole network (UP-ViTs, sec. 3.2)."""

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
    """Patch embedding, class token, positions, every norm, inputs of q, k, v, fc1, outputs of proj, fc2, the head."""
    yield f'{BACKBONE}cls_token', 2
    yield f'{BACKBONE}pos_embed', 2
    yield from rows(f'stages.{i}.patch_embed.proj')
    for j in range(arch.depths[i]):
        yield from block_embed_slots(i, j)
    yield from rows(f'stages.{i}.norm')
    yield from head_columns()


def mlp_hidden_slots(i: int, j: int) -> Iterator[Slot]:
    yield from rows(f'{block_name(i, j)}.mlp.fc1')
    yield from columns(f'{block_name(i, j)}.mlp.fc2')


def fixed_slots(arch: ArchSpec) -> Iterator[Slot]:
    for name in ('cls_token', 'pos_embed'):
        yield f'{BACKBONE}{name}', 0
        yield f'{BACKBONE}{name}', 1
    yield from columns('stages.0.patch_embed.proj')
    yield from kernel_sides('stages.0.patch_embed.proj')
