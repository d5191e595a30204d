"""Which blocks go: exact KL of every candidate, scored again after each removal since neighbours overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from upvit_mm.pruning.depth import Branch, Pair, all_blocks, branches, removal_candidates, remove
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.importance import Batch, log_posteriors
from upvit_mm.pruning.network import PosteriorNet
from upvit_mm.pruning.table import block_name


@torch.inference_mode()
def choose_blocks(
    net: PosteriorNet, batches: Callable[[], Iterable[Batch]], depths: Sequence[int]
) -> tuple[tuple[Pair, ...], ...]:
    """The blocks that stay when each stage shrinks to a depth, removing the candidate with the lowest KL each time.

    Args:
        net: the dense classifier.
        batches: gives the proxy set; called once a removal.
        depths: per stage, at least 1 and at most the dense depth.

    Returns:
        Per stage the kept blocks, as ``PrunePlan.kept_blocks`` has them.

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
        losses = [_divergence(net, batches, stages, i, c) for i, c in candidates]
        i, candidate = candidates[losses.index(min(losses))]
        stages[i] = remove(stages[i], candidate)


def _divergence(net, batches, stages: Sequence[tuple[Pair, ...]], i: int, candidate: tuple[Branch, Branch]) -> float:
    """Mean KL without everything removed so far and without one candidate more."""
    left = [*stages[:i], remove(stages[i], candidate), *stages[i + 1 :]]
    closed: dict[str, Tensor] = {}
    for k, pairs in enumerate(left):
        for kind, j in set(branches(all_blocks(net.backbone.arch.depths[k]))) - set(branches(pairs)):
            closed[f'{block_name(k, j)}.{kind}'] = torch.zeros(1)
    total, count = 0.0, 0
    for images, _ in batches():
        reference = log_posteriors(net(images))
        with gates(net.backbone, {name: gate.to(images) for name, gate in closed.items()}):
            pruned = log_posteriors(net(images))
        total += (reference.exp() * (reference - pruned)).sum().item()
        count += len(images)
    return total / count
