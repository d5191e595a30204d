"""Which maps of two backbones to compare, and how to get them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.models.layers.grid import grid_of, map_to_tokens

QUARTERS = 4


def common_stages(archs: Sequence[ArchSpec]) -> tuple[list[str], list[tuple[int, ...]]]:
    """Where networks are compared: PVTv2 after each stage, DeiT after each quarter of its depth.

    The output of DeiT's last block is taken after the final norm, as the backbone gives it. If depths differ, equal
    shares of the depth are compared; with fewer than four blocks there are fewer places.

    Args:
        archs: the dense one first.

    Returns:
        Labels (``stage2``; ``block5`` with the dense net's number), and for each arch its ``out_indices``.

    Raises:
        ValueError: another family or other strides than the dense one, because such grids never match.
    """
    dense = archs[0]
    for arch in archs[1:]:
        if (arch.family, arch.strides) != (dense.family, dense.strides):
            raise ValueError(
                f'{_describe(dense)} and {_describe(arch)}: only networks of equal stages and strides have the same '
                'token grids; compare a network with its own pruned version.'
            )
    if dense.kind.is_pyramid:
        stages = tuple(range(dense.num_stages))
        return [f'stage{i}' for i in stages], [stages] * len(archs)
    places = min(QUARTERS, *(arch.depths[0] for arch in archs))
    indices = [tuple(-(-arch.depths[0] * (k + 1) // places) - 1 for k in range(places)) for arch in archs]
    return [f'block{j}' for j in indices[0]], indices


def paired_tokens(
    dense: Sequence[Tensor], pruned: Sequence[Tensor], labels: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield stage by stage the tokens ``(B, N, C1)`` and ``(B, N, C2)`` of two sequences of maps.

    Raises:
        ValueError: the grids differ.
    """
    for label, a, b in zip(labels, dense, pruned):
        if grid_of(a) != grid_of(b):
            sides = ' and '.join('x'.join(map(str, grid_of(m))) for m in (a, b))
            raise ValueError(f'token grids of {label} differ: {sides} (dense and pruned); they cannot be compared.')
        yield map_to_tokens(a), map_to_tokens(b)


def _describe(arch: ArchSpec) -> str:
    name = f'{arch.name} ({arch.family})' if arch.name else arch.family
    return f'{name} with {arch.num_stages} stage(s) of stride {", ".join(map(str, arch.strides))}'
