"""Which blocks are removed: exact KL of every candidate, scored again after each removal because neighbours overlap."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.criteria import Criterion
from upvit_mm.pruning.depth import Branch, Pair, all_blocks, branches, removal_candidates, remove
from upvit_mm.pruning.importance import POSTERIOR
from upvit_mm.pruning.table import block_name
from upvit_mm.pruning.walk import Walk

logger = logging.getLogger('upvit_mm')


@torch.inference_mode()
def choose_blocks(
    net: Walk, batches: Sequence[Batch], depths: Sequence[int], criterion: Criterion = POSTERIOR
) -> tuple[tuple[Pair, ...], ...]:
    """The blocks that stay when each stage shrinks to a depth; each step removes the candidate that changes least.

    Args:
        net: the dense network that the criterion needs.
        batches: the proxy set; read once for each removal.
        depths: per stage, at least 1 and at most the dense depth.
        criterion: what is measured (UP-ViTs: the KL of the posteriors).

    Returns:
        Kept blocks per stage, in the form of ``PrunePlan.kept_blocks``.

    Raises:
        ValueError: an impossible depth.
    """
    arch = net.backbone.arch
    if len(depths) != arch.num_stages or any(not 1 <= d <= full for d, full in zip(depths, arch.depths)):
        raise ValueError(
            f'depths = {list(depths)}: each must be between 1 and that of the source, {list(arch.depths)}.'
        )
    stages = [all_blocks(depth) for depth in arch.depths]
    while True:
        candidates = [(i, c) for i, p in enumerate(stages) if len(p) > depths[i] for c in removal_candidates(p)]
        if not candidates:
            return tuple(stages)
        losses = _distances(net, batches, stages, candidates, criterion)
        i, candidate = candidates[losses.index(min(losses))]
        stages[i] = remove(stages[i], candidate)
        names = ' and '.join(f'{kind} of block {j}' for kind, j in candidate)
        logger.info('stage %d loses %s: summed change %.4g, least of %d', i, names, min(losses), len(losses))


def _distances(
    net: Walk,
    batches: Sequence[Batch],
    stages: Sequence[tuple[Pair, ...]],
    candidates: Sequence[tuple[int, tuple[Branch, Branch]]],
    criterion: Criterion,
) -> list[float]:
    """Summed distance of each ``(stage, candidate)``: without it and without all that was removed before."""
    closed = [_closed_branches(net, [*stages[:i], remove(stages[i], c), *stages[i + 1 :]]) for i, c in candidates]
    totals = [0.0] * len(candidates)
    for batch in batches:
        reference = criterion.values(net(batch.images), batch)
        for k, names in enumerate(closed):
            with net.gated({name: batch.images.new_zeros(1) for name in names}):
                pruned = criterion.values(net(batch.images), batch)
            totals[k] += criterion.distance(reference, pruned).sum().item()
    return totals


def _closed_branches(net: Walk, stages: Sequence[tuple[Pair, ...]]) -> list[str]:
    """Names of the branches that are not in these stages."""
    depths = net.backbone.arch.depths
    return [
        f'{block_name(k, j)}.{kind}'
        for k, pairs in enumerate(stages)
        for kind, j in sorted(set(branches(all_blocks(depths[k]))) - set(branches(pairs)))
    ]
