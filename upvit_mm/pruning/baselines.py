"""Scores that other methods use, for comparison; they need no images. Higher = keep."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.dims import prunable_dims


def magnitude_scores(arch: ArchSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """L2 norm of all parameters of a channel: its rows, columns, biases and norm parameters, ``(size,)``.

    Args:
        arch: architecture of the state dict.
        state: ``backbone.*``, and ``head.fc.*`` if there is a head.
    """
    scores = {}
    for dim in prunable_dims(arch).values():
        total = torch.zeros(dim.size, dtype=torch.float64)
        for slot in dim.slots:
            if slot.tensor in state and slot.is_learned and not slot.per_head:  # those of a head belong to no channel
                copies = state[slot.tensor].double().movedim(slot.axis, 0).reshape(slot.tile, dim.size, -1)
                total += copies.square().sum(dim=2).sum(dim=0).cpu()
        scores[dim.name] = total.sqrt()
    return scores


def random_scores(arch: ArchSpec, seed: int) -> dict[str, Tensor]:
    """Uniform in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    dims = prunable_dims(arch).values()
    return {dim.name: torch.rand(dim.size, generator=generator, dtype=torch.float64) for dim in dims}
