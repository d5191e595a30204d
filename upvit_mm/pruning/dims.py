"""Prunable dims: which tensor axes must shrink together.

Each family declares a table (``dims_vit``, ``dims_pvtv2``); nothing is traced. Tensor names are those of a
classifier's state dict: ``backbone.*`` in our layout, and ``head.fc.*``, which may be absent.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.table import Slot, Table, block_name, stage_name

KINDS = ('embed', 'qk', 'v', 'mlp_hidden')


@dataclass(frozen=True)
class PrunableDim:
    """A width of the network.

    Attributes:
        name: ``stages.0.embed``, ``stages.0.blocks.3.qk``, ``.v`` or ``.mlp_hidden``; plain ViTs have only stage 0.
        size: channels.
        groups: number of consecutive runs of equal length (attention heads), which stay equal after pruning; 1 = none.
        slots: every axis of a tensor that has this width.
        paired: whether channel c and c + d/2 of a head of d channels stay or go together (rotary queries and keys).
    """

    name: str
    size: int
    groups: int
    slots: tuple[Slot, ...]
    paired: bool = False

    @property
    def unit(self) -> int:
        """Channels that stay or go together."""
        return 2 if self.paired else 1

    def partners(self) -> Tensor:
        """The channel that stays or goes with each channel, ``(size,)`` int64; without pairs itself."""
        heads = torch.arange(self.size).view(self.groups, -1)
        return (heads.roll(heads.shape[1] // 2, dims=1) if self.paired else heads).flatten()

    @property
    def kind(self) -> str:
        return self.name.rsplit('.', 1)[1]

    @property
    def stage(self) -> int:
        return int(self.name.split('.')[1])

    @property
    def block(self) -> int | None:
        """Block in the stage; None for ``embed``."""
        parts = self.name.split('.')
        return int(parts[3]) if len(parts) > 3 else None


def table_of(arch: ArchSpec) -> Table:
    """The table of the family."""
    return importlib.import_module(arch.kind.dims).TABLE


def prunable_dims(arch: ArchSpec) -> dict[str, PrunableDim]:
    """Every prunable dim of an architecture by name, from the front of the network to its end."""
    table, dims = table_of(arch), []
    for i, depth in enumerate(arch.depths):
        dims.append(PrunableDim(f'{stage_name(i)}.embed', arch.embed_dims[i], 1, tuple(table.embed_slots(arch, i))))
        for j in range(depth):
            heads = arch.num_heads[i][j]
            of_block = (
                ('qk', arch.qk_dims, heads, table.qk_slots),
                ('v', arch.v_dims, heads, table.v_slots),
                ('mlp_hidden', arch.mlp_hidden_dims, 1, table.mlp_hidden_slots),
            )
            for kind, widths, groups, slots in of_block:
                name, paired = f'{block_name(i, j)}.{kind}', kind == 'qk' and arch.kind.rotary
                dims.append(PrunableDim(name, widths[i][j], groups, tuple(slots(arch, i, j)), paired))
    return {dim.name: dim for dim in dims}


def fixed_axes(arch: ArchSpec) -> set[Slot]:
    """Axes that no dim owns: image channels, kernel sides, token counts, classes."""
    return {*table_of(arch).fixed_slots(arch), Slot('head.fc.weight', 0), Slot('head.fc.bias', 0)}
