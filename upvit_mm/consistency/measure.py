"""Compare networks with a dense one, stage by stage, at any input sizes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Grid, Size, size_text
from upvit_mm.consistency.metrics import StageMetrics
from upvit_mm.consistency.stages import common_stages, paired_tokens
from upvit_mm.data.image_files import ImageFiles
from upvit_mm.models.layers.grid import grid_of
from upvit_mm.models.network import Network
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.table import stage_name

logger = logging.getLogger('upvit_mm')
Results = dict[str, dict[str, dict[str, Any]]]  # size -> stage -> 'grid', 'tokens' and measures by name
Report = Callable[[int], None]  # images done since the last call


def compare(
    dense: Network,
    pruned: Network,
    images: ImageFiles,
    sizes: Sequence[Size],
    plan: PrunePlan | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> Results:
    """How consistent the tokens of a pruned network are with those of the dense one.

    The class token of DeiT is left out; it has no place on the grid.

    Args:
        dense: the reference.
        pruned: the pruned network.
        images: see ``find_images``; the first half fits the ridge map.
        sizes: ``(height, width)`` to which images are stretched.
        plan: plan of the pruned network; adds the kept-channel error.
        seed: seed of the random tokens for the token relations.
        report: called with the number of images done.

    Returns:
        By size and stage (see ``common_stages``) the token ``grid``, the number of ``tokens``, and the measures of
        ``metrics.METRICS``, NaN where one is not defined.

    Raises:
        ValueError: other stages or strides, a plan of other networks, or an image size below the largest stride.
    """
    plans = {} if plan is None else {'pruned': plan}
    return contrast(dense, {'pruned': pruned}, images, sizes, plans, seed, report)['pruned']


def contrast(
    dense: Network,
    variants: Mapping[str, Network],
    images: ImageFiles,
    sizes: Sequence[Size],
    plans: Mapping[str, PrunePlan] | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> dict[str, Results]:
    """``compare`` for several networks at once, on the same images; results by name.

    Raises:
        ValueError: see ``compare``; if a plan does not fit, the message names the network.
    """
    plans = plans or {}
    labels, (dense_indices, *indices) = common_stages([dense.arch, *(v.arch for v in variants.values())])
    for name, plan in plans.items():
        check_plan(plan, dense.arch, variants[name].arch, name)
    check_grids(dense, variants, sizes)
    results: dict[str, Results] = {name: {} for name in variants}
    for size in sizes:
        stages: dict[str, list[StageMetrics]] = {}
        for name in variants:
            kept = [_kept(plans.get(name), i) for i in range(len(labels))]
            stages[name] = [StageMetrics(-(-len(images) // 2), channels, seed) for channels in kept]
        for batch in images.batches(size):
            theirs = dense.maps(batch, dense_indices)
            for (name, network), where in zip(variants.items(), indices):
                pairs = paired_tokens(theirs, network.maps(batch, where), labels)
                for metrics, (a, b) in zip(stages[name], pairs):
                    metrics.update(a, b.to(a))
            if report:
                report(len(batch))
        grids = [grid_of(m) for m in theirs]
        _warn_of_few_tokens(size, labels, theirs, len(images))
        for name in variants:
            results[name][size_text(size)] = {
                label: {'grid': list(grid), 'tokens': len(images) * grid[0] * grid[1], **metrics.compute()}
                for label, grid, metrics in zip(labels, grids, stages[name])
            }
    return results


def check_grids(dense: Network, variants: Mapping[str, Network], sizes: Sequence[Size]) -> dict[str, list[Grid]]:
    """The token grids of every stage at some input sizes; they must be exactly equal in all networks.

    Returns:
        By size, one ``(H, W)`` per stage.

    Raises:
        ValueError: a stage of a variant has another grid than the dense one.
    """
    labels, (dense_indices, *indices) = common_stages([dense.arch, *(v.arch for v in variants.values())])
    grids = {}
    for size in sizes:
        empty = torch.zeros(1, 3, *size, dtype=torch.uint8)
        theirs = dense.maps(empty, dense_indices)
        for (name, network), where in zip(variants.items(), indices):
            for _ in paired_tokens(theirs, network.maps(empty, where), [f'{name}, {label}' for label in labels]):
                pass
        grids[size_text(size)] = [grid_of(m) for m in theirs]
    return grids


def check_plan(plan: PrunePlan, dense: ArchSpec, pruned: ArchSpec, name: str = 'pruned') -> None:
    """Refuse a plan that does not lead from one architecture to the other.

    Raises:
        ValueError: the first field that differs.
    """
    for side, planned, found in (('source', plan.source_arch, dense), ('target', plan.target_arch, pruned)):
        ours, theirs = planned.to_dict(), found.to_dict()
        wrong = [field for field in ours if field != 'name' and ours[field] != theirs[field]]
        if wrong:
            field = wrong[0]
            raise ValueError(
                f"the plan's {side} has {field} = {ours[field]}, the {'dense' if side == 'source' else name} network "
                f'{theirs[field]}: give the plan.json that was written beside the pruned checkpoint.'
            )


def _warn_of_few_tokens(size: Size, labels: Sequence[str], maps: Sequence[Tensor], images: int) -> None:
    few = [label for label, m in zip(labels, maps) if -(-images // 2) * grid_of(m)[0] * grid_of(m)[1] < 2 * m.shape[1]]
    if few:
        logger.warning(
            'at %s %s: fewer than two tokens per channel fit the ridge map: cosine and R2 mean little; use more.',
            *(size_text(size), ', '.join(few)),
        )


def _kept(plan: PrunePlan | None, place: int) -> Tensor | None:
    """Kept channels at an index of ``common_stages``; all of DeiT's are in its only stage. None where directions were
    kept instead of channels."""
    if plan is None:
        return None
    name = f'{stage_name(min(place, plan.source_arch.num_stages - 1))}.embed'
    return None if name in plan.turned else plan.kept[name]
