"""Depth: which blocks of a stage stay.

A stage of L blocks is the sequence A0 F0 A1 F1 ... (attention, feed-forward). A candidate for removal is a pair of
neighbours, either ``A_i F_i`` or ``F_i A_{i+1}``: 2L - 1 of them (UP-ViTs, sec. 3.3). Both leave a regular stack; the
second leaves a block with the attention of block i and the feed-forward network of block i + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Branch = tuple[str, int]  # ('attn' or 'mlp', source block)
Pair = tuple[int, int]  # source block of a new block's attention, and of its feed-forward network


def branches(pairs: Sequence[Pair]) -> list[Branch]:
    """The branches of a stage in their order, from its blocks."""
    return [branch for attn, mlp in pairs for branch in (('attn', attn), ('mlp', mlp))]


def all_blocks(depth: int) -> tuple[Pair, ...]:
    """The blocks of an unpruned stage."""
    return tuple((j, j) for j in range(depth))


def removal_candidates(pairs: Sequence[Pair]) -> list[tuple[Branch, Branch]]:
    """Every pair of neighbours, in order; empty when one block is left, because a stage must keep one block."""
    sequence = branches(pairs)
    return list(pairwise(sequence)) if len(pairs) > 1 else []


def remove(pairs: Sequence[Pair], candidate: tuple[Branch, Branch]) -> tuple[Pair, ...]:
    """The blocks that stay when a candidate is removed.

    Raises:
        ValueError: the two are not neighbours in this stage.
    """
    if candidate not in removal_candidates(pairs):
        raise ValueError(f'candidate {candidate}: no two neighbours of the stage {branches(pairs)}.')
    left = [branch for branch in branches(pairs) if branch not in candidate]
    return tuple((attn, mlp) for (_, attn), (_, mlp) in zip(left[::2], left[1::2]))


def check_blocks(field: str, pairs: Sequence[Pair], depth: int) -> tuple[Pair, ...]:
    """``pairs`` as tuples, checked: removals of neighbours must be able to lead to them.

    Raises:
        ValueError: empty, an index outside the stage, or branches that are not in their order.
    """
    pairs = tuple((int(attn), int(mlp)) for attn, mlp in pairs)
    order = [2 * block + (kind == 'mlp') for kind, block in branches(pairs)]
    if not pairs or order != sorted(set(order)) or not 0 <= order[0] <= order[-1] < 2 * depth:
        raise ValueError(
            f'{field} = {[list(p) for p in pairs]}: must hold [attention block, feed-forward block] pairs in the order '
            f'of the {depth} source blocks, at least one.'
        )
    return pairs
