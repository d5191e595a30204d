"""Pairs of dense and sliced networks, and pictures to compare them on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.image import imsave
from torch import Tensor

from upvit_mm.consistency import Colours, ImageFiles, Network
from upvit_mm.pruning import PrunePlan, make_plan, prunable_dims, slice_state

COLOURS = Colours((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True)


class Pair(NamedTuple):
    """A random network and what a plan leaves of it."""

    dense: Network
    pruned: Network
    plan: PrunePlan


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """``tokens(B, N, C, seed=0)``: independent normal numbers in float64."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return draw


@pytest.fixture
def pair(family, build) -> Pair:
    """Most channels of the embedding kept, half of the rest; the tiny network of a family."""
    dense = build(family)
    kept = {}
    for dim in prunable_dims(dense.arch).values():
        run = dim.size // dim.groups
        count = run - 1 if dim.kind == 'embed' else max(1, run // 2)
        kept[dim.name] = [g * run + c for g in range(dim.groups) for c in range(count)]
    plan = make_plan(dense.arch, kept)
    state = slice_state({f'backbone.{k}': v for k, v in dense.state_dict().items()}, plan)
    pruned = build(family, plan.target_arch)
    pruned.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    return Pair(Network(dense, COLOURS), Network(pruned, COLOURS), plan)


@pytest.fixture
def pictures(tmp_path) -> Callable[..., Path]:
    """``pictures(count, folder='pictures')``: a folder of random PNG files of 48x64 pixels."""

    def write(count: int, folder: str = 'pictures') -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for k in range(count):
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            imsave(tmp_path / folder / f'{k:03}.png', coarse.repeat(8, axis=0).repeat(8, axis=1))
        return tmp_path / folder

    return write


@pytest.fixture
def images(pictures) -> ImageFiles:
    """Six of them."""
    return ImageFiles(sorted(pictures(6).iterdir()))
