"""Costs of a network that drops tokens, and the share of tokens that meets a budget.

``upvit_mm.pruning.costs`` counts every module of the whole network; here each count is scaled by the share of tokens
that reaches the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import prod

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import GLOBAL, Grid, Size, Windows
from upvit_mm.pruning.costs import Term, mac_terms, widths_of

TOLERANCE = 0.01  # share of a budget


def kept_tokens(keep_rate: float, tokens: int) -> int:
    """Number of ``tokens`` that stay at a rate in (0, 1]; at least 1."""
    return max(1, math.ceil(keep_rate * tokens))


def drop_layers(depth: int) -> tuple[int, ...]:
    """Blocks of a DeiT that drop tokens: after a quarter, half and three quarters of the depth, as in EViT."""
    return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))


def grids_of(arch: ArchSpec, size: Size) -> list[Grid]:
    """Token grid of every stage."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in arch.strides]


def dropping_macs(
    arch: ArchSpec, size: Size, keep_rate: float, start: Sequence[int] | int, windows: Windows = GLOBAL
) -> int:
    """Multiply-accumulates of one image of a backbone that drops tokens like ``token_dropping.py``.

    Args:
        arch: the network.
        size: ``(height, width)`` in pixels.
        keep_rate: share of tokens that stay at each dropping.
        start: the first stage that drops tokens; in a network with one stage, the blocks that drop tokens.
        windows: where blocks attend within windows; tokens that stay count as spread evenly over them.
    """
    shares = _shares_by_stage if arch.kind.is_pyramid else _shares_by_block
    share = shares(arch, size, keep_rate, start)
    widths = widths_of(arch)
    return round(
        sum(
            term.factor * prod(widths[dim] for dim in term.dims) * share(term)
            for term in mac_terms(arch, size, windows=windows)
        )
    )


def rate_for_macs(
    arch: ArchSpec,
    size: Size,
    macs: int,
    start: Sequence[int] | int,
    tolerance: float = TOLERANCE,
    windows: Windows = GLOBAL,
) -> float:
    """The keep rate at which the network costs ``macs``, within ``tolerance``.

    Args:
        arch, size, start, windows: see ``dropping_macs``.
        macs: allowed cost of one image.
        tolerance: largest difference, as a share of ``macs``; infinity = the nearest that there is.

    Raises:
        ValueError: no rate meets it: ``macs`` is out of reach, or there are so few tokens that one token is more than 1
            %.
    """
    low, high = 0.0, 1.0
    for _ in range(40):  # costs rise in steps with the rate
        middle = (low + high) / 2
        low, high = (middle, high) if dropping_macs(arch, size, middle, start, windows) < macs else (low, middle)
    cheaper, dearer = (dropping_macs(arch, size, rate, start, windows) for rate in (low, high))
    rate, found = min((low, cheaper), (high, dearer), key=lambda pair: abs(pair[1] - macs))
    if abs(found - macs) > tolerance * macs:
        least, most = (dropping_macs(arch, size, rate, start, windows) for rate in (0.0, 1.0))
        raise ValueError(
            f'{macs} MACs at {size[0]}x{size[1]} cannot be met within 1 % by dropping tokens: the nearest is {found}, '
            f'the range {least} to {most}. Drop earlier, or take larger images.'
        )
    return rate


def _shares_by_block(arch: ArchSpec, size: Size, keep_rate: float, layers: Sequence[int]) -> Callable[[Term], float]:
    ((height, width),) = grids_of(arch, size)
    whole = left = height * width
    prefix = arch.num_prefix_tokens
    attn, mlp = [], []  # share of tokens by block, including the prefix
    for j in range(arch.depths[0]):
        attn.append((prefix + left) / (prefix + whole))
        left = kept_tokens(keep_rate, left) if j in layers else left
        mlp.append((prefix + left) / (prefix + whole))

    def share(term: Term) -> float:
        parts = term.module.split('.')  # stages.0.blocks.j.attn[.q], stages.0.blocks.j.mlp.fc1
        if len(parts) < 5:
            return 1.0
        if parts[4] == 'mlp':
            return mlp[int(parts[3])]
        return attn[int(parts[3])] ** (2 if len(parts) == 5 else 1)  # pairs of query and key, or tokens

    return share


def _shares_by_stage(arch: ArchSpec, size: Size, keep_rate: float, first: int) -> Callable[[Term], float]:
    counts = [height * width for height, width in grids_of(arch, size)]
    shares = [kept_tokens(keep_rate, n) / n if i >= first else 1.0 for i, n in enumerate(counts)]

    def share(term: Term) -> float:
        parts = term.module.split('.')
        if len(parts) < 5:
            return 1.0
        stage, module = int(parts[1]), '.'.join(parts[4:])
        reduced = arch.sr_ratios[stage] > 1  # then keys and values come from the whole grid
        if module == 'attn.sr' or (reduced and module in ('attn.k', 'attn.v')):
            return 1.0
        return shares[stage] ** (2 if module == 'attn' and not reduced else 1)

    return share
