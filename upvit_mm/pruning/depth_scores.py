"""Which blocks are removed: exact KL of every candidate, scored again after each removal because neighbours overlap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.criteria import Criterion
from upvit_mm.pruning.depth import Pair, all_blocks, branches, removal_candidates, remove
from upvit_mm.pruning.full_precision import full_precision
from upvit_mm.pruning.importance import POSTERIOR, Report, on_host
from upvit_mm.pruning.table import block_name
from upvit_mm.pruning.walk import Walk

logger = logging.getLogger('upvit_mm')


Distances = Callable[[int, list[list[str]]], list[float]]  # removals so far, closed branches by candidate


def choose_blocks(
    net: Walk,
    batches: Sequence[Batch],
    depths: Sequence[int],
    criterion: Criterion = POSTERIOR,
    distances: Distances | None = None,
) -> tuple[tuple[Pair, ...], ...]:
    """The blocks that stay when each stage shrinks to a depth; each step removes the candidate that changes least.

    Args:
        net: the dense network that the criterion needs.
        batches: the proxy set; read once for each removal.
        depths: per stage, at least 1 and at most the dense depth.
        criterion: what is measured (UP-ViTs: the KL of the posteriors).
        distances: gives the mean distance of each candidate, from ``distance_sums`` of all batches; None = computed
            here, in one process. ``workflow/job_blocks.py`` shares the batches among processes.

    Returns:
        Kept blocks per stage, in the form of ``PrunePlan.kept_blocks``.

    Raises:
        ValueError: an impossible depth, no images, or outputs that are not finite.
    """
    check_depths(net.backbone.arch, depths)
    stages, distances = list(map(all_blocks, net.backbone.arch.depths)), distances or _here(net, batches, criterion)
    for done in range(sum(net.backbone.arch.depths) - sum(depths)):
        candidates = [(i, c) for i, p in enumerate(stages) if len(p) > depths[i] for c in removal_candidates(p)]
        closed = [_closed_branches(net, [*stages[:i], remove(stages[i], c), *stages[i + 1 :]]) for i, c in candidates]
        losses = distances(done, closed)
        i, candidate = candidates[losses.index(min(losses))]
        stages[i] = remove(stages[i], candidate)
        names = ' and '.join(f'{kind} of block {j}' for kind, j in candidate)
        logger.info('stage %d loses %s: mean change %.4g, least of %d', i, names, min(losses), len(losses))
    return tuple(stages)


def check_depths(arch: ArchSpec, depths: Sequence[int]) -> None:
    """Refuse depths that no removal reaches.

    Raises:
        ValueError: they are not between 1 and those of the network.
    """
    if len(depths) != arch.num_stages or any(not 1 <= d <= full for d, full in zip(depths, arch.depths)):
        raise ValueError(
            f'depths = {list(depths)}: each must be between 1 and that of the source, {list(arch.depths)}.'
        )


@torch.inference_mode()
@full_precision()
def distance_sums(
    net: Walk, batch: Batch, closed: Sequence[Sequence[str]], criterion: Criterion, report: Report | None = None
) -> Tensor:
    """Sums over the images of a batch of the distance without some branches, ``(candidates,)`` float64 on the host.

    Args:
        net: the dense network.
        batch: of the proxy set.
        closed: by candidate, all branches that are closed.
        criterion: what is measured.
        report: called after each candidate.

    Raises:
        ValueError: outputs that are not finite.
    """
    reference, sums = criterion.values(net(batch.images), batch), []
    for names in closed:
        with net.gated({name: batch.images.new_zeros(1) for name in names}):
            pruned = criterion.values(net(batch.images), batch)
        sums.append(criterion.distance(reference, pruned).sum().double())
        if report:
            report('blocks', len(batch.images))
    return on_host({'sums': torch.stack(sums)}, torch.isfinite(reference).all(), criterion)['sums']


def _here(net: Walk, batches: Sequence[Batch], criterion: Criterion) -> Distances:
    """All batches in this process and in memory."""

    def distances(done: int, closed: list[list[str]]) -> list[float]:
        total, count = torch.zeros(len(closed), dtype=torch.float64), 0
        for batch in batches:
            total, count = total + distance_sums(net, batch, closed, criterion), count + len(batch.images)
        if not count:
            raise ValueError('the proxy set has no images; blocks cannot be chosen.')
        return (total / count).tolist()

    return distances


def _closed_branches(net: Walk, stages: Sequence[tuple[Pair, ...]]) -> list[str]:
    """Names of the branches that are not in these stages."""
    depths = net.backbone.arch.depths
    return [
        f'{block_name(k, j)}.{kind}'
        for k, pairs in enumerate(stages)
        for kind, j in sorted(set(branches(all_blocks(depths[k]))) - set(branches(pairs)))
    ]
