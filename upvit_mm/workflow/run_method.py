"""Run a scoring method over images: with progress, shared by processes, resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from upvit_mm.data.image_set import ImageSet
from upvit_mm.pruning import prunable_dims
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.criteria import Criterion
from upvit_mm.pruning.hybrid import near_cut, rerank, tied
from upvit_mm.pruning.importance import Scores, Sums
from upvit_mm.pruning.methods import METHODS, Method
from upvit_mm.pruning.scoring import all_channels
from upvit_mm.pruning.shared_work import score_in_parts
from upvit_mm.pruning.walk import Walk
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.scoring_progress import ScoringProgress

Cut = Callable[[Scores], tuple[dict[str, Tensor], dict[str, int]]]  # gives kept channels, and runs of each dim


def score_images(
    net: Walk,
    criterion: Criterion,
    proxy: ImageSet,
    settings: PruneSettings,
    folder: Path,
    crew: Crew,
    cut: Cut,
) -> Scores | None:
    """Scores by a method that reads images (``settings.method``).

    Args:
        net: the dense network that the criterion needs.
        criterion: what is measured, by a method that can choose.
        proxy: the images.
        settings: the method and its settings.
        folder: for partial sums of only these inputs.
        crew: the processes that share the job.
        cut: gives the kept channels of a plan from scores; a method with a second scoring calls it, in the first
            process.

    Returns:
        Scores by dim name for the first process, None for others.
    """
    known = settings.method in METHODS and METHODS[settings.method].needs_images
    assert known, f'method = {settings.method!r}: not one that reads images'
    method = METHODS[settings.method]
    first = _score(method, net, criterion, proxy, all_channels(net.backbone.arch), settings, folder / method.name, crew)
    second = method.near_cut
    if second is None:
        return first
    ranked = tied if settings.tie_qkv else dict  # the scores by which the plan chooses channels

    def look() -> tuple[dict[str, Tensor], dict[str, int]]:
        kept, groups = cut(first)
        partners = {name: dim.partners() for name, dim in prunable_dims(net.backbone.arch).items() if dim.paired}
        return near_cut(ranked(first), kept, groups, settings.near_share, partners), groups

    near, groups = crew.share(look)
    if not near:
        return first
    scores = _score(second, net, criterion, proxy, near, settings, folder / second.name, crew)
    return None if scores is None else rerank(first, ranked(scores), near, groups)


def _score(
    method: Method,
    net: Walk,
    criterion: Criterion,
    proxy: ImageSet,
    channels: dict[str, Tensor],
    settings: PruneSettings,
    folder: Path,
    crew: Crew,
) -> Scores | None:
    """Run a method over this process's share of the images."""
    dims, own = prunable_dims(net.backbone.arch), settings.some(*method.settings)
    if method.criteria:
        own['criterion'] = criterion
    mine = [proxy.size_of(k) for k in range(crew.rank, len(proxy), crew.size)]
    totals: dict[str, int] = {}
    for name, indices in channels.items():
        totals[dims[name].kind] = totals.get(dims[name].kind, 0) + sum(mine) * len(indices)
    with ScoringProgress(totals) as progress:

        def of_batch(batch: Batch, wanted: set[str]) -> Sums:
            some = {name: channels[name] for name in wanted}
            return method.of_batch(net, batch, some, report=progress.advance, **own)

        def resumed(name: str, images: int) -> None:
            progress.resume(dims[name].kind, images * len(channels[name]))

        scores = score_in_parts(proxy, of_batch, list(channels), folder, crew, resumed)
    return None if scores is None else net.with_means(scores)
