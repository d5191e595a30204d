"""How far the maps of a pruned detector are from those of the dense one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def map_distance(given: object, wanted: object) -> Tensor:
    """Mean squared difference of the maps that the heads read, each in units of the variance of the dense map.

    All maps count alike, whatever their size and the scale of their values. 0: they are equal; 1: they differ as much
    as a map that is everywhere the mean of the dense one. This is ours.

    Args:
        given: maps ``(B, C, H, W)`` of the pruned detector, in any nesting.
        wanted: those of the dense detector for the same images.

    Returns:
        A scalar in fp32 or better.

    Raises:
        ValueError: the two give other numbers of maps, or maps of other sizes.
    """
    ours, theirs = _maps(given), _maps(wanted)
    here, there = ([tuple(m.shape[1:]) for m in maps] for maps in (ours, theirs))
    if here != there:
        raise ValueError(
            f'the heads read maps (channels, height, width) of {_words(here)}, and in the dense detector of '
            f'{_words(there)}: they must be the same to be compared. Without a neck only attention and feed-forward '
            'widths may be pruned for that.'
        )
    parts = [(a - b).square().mean() / b.var() for a, b in zip(ours, theirs)]
    return torch.stack(parts).mean()


def _maps(outputs: object) -> list[Tensor]:
    """Differences of close maps are lost in half precision."""
    maps = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return [leaf.float() if leaf.element_size() < 4 else leaf for leaf in maps]


def _words(shapes: list[tuple[int, ...]]) -> str:
    return ', '.join('x'.join(map(str, shape)) for shape in shapes)
