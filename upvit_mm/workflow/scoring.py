"""Scoring on images: the methods, with progress, shared by processes and resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.data.image_set import ImageSet
from upvit_mm.pruning import prunable_dims
from upvit_mm.pruning.baselines import magnitude_scores, random_scores
from upvit_mm.pruning.importance import Batch, Scores, Sums, fisher_sums, kl_sums, taylor_sums
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.scoring import Crew, near_cut, rerank, score_in_parts, tied
from upvit_mm.workflow.progress import ScoringProgress
from upvit_mm.workflow.settings import Settings

Cut = Callable[[Scores], tuple[dict[str, Tensor], dict[str, int]]]  # to kept channels, and runs of each dim


def score_weights(settings: Settings, arch: ArchSpec, state: Mapping[str, Tensor]) -> Scores:
    """Scores by a method that looks at no image (``settings.method``).

    Args:
        settings: which method, and its seed.
        arch: the dense architecture.
        state: its weights, see ``magnitude_scores``.
    """
    if settings.method == 'magnitude':
        return magnitude_scores(arch, state)
    assert settings.method == 'random', f'method = {settings.method!r}: not one that looks at weights'
    return random_scores(arch, settings.seed)


def score_images(
    net: PosteriorNet,
    proxy: ImageSet,
    settings: Settings,
    folder: Path,
    crew: Crew,
    cut: Cut,
) -> Scores | None:
    """Scores by a method that looks at images (``settings.method``).

    Args:
        net: the dense classifier.
        proxy: the images.
        settings: which method, and how.
        folder: for partial sums, of these inputs alone.
        crew: who works.
        cut: what a plan made from scores keeps; ``hybrid`` asks, in the first process.

    Returns:
        Scores by dim name for the first process, None for others.
    """
    every = {name: torch.arange(dim.size) for name, dim in prunable_dims(net.backbone.arch).items()}
    exact = partial(kl_sums, max_rows=settings.max_rows)
    if settings.method == 'kl':
        return _score(net, proxy, _of_channels(exact, every), every, folder, crew)
    if settings.method == 'taylor':
        return _score(net, proxy, _of_gradients(taylor_sums), every, folder, crew)
    assert settings.method in ('fisher', 'hybrid'), f'method = {settings.method!r}: not one that looks at images'
    fisher = partial(fisher_sums, draws=settings.draws, seed=settings.seed)
    estimate = _score(net, proxy, _of_gradients(fisher), every, folder / 'fisher', crew)
    if settings.method == 'fisher':
        return estimate

    ranked = tied if settings.tie_qkv else dict  # by what the plan chooses channels

    def look() -> tuple[dict[str, Tensor], dict[str, int]]:
        kept, groups = cut(estimate)
        return near_cut(ranked(estimate), kept, groups, settings.near_share), groups

    near, groups = crew.share(look)
    if not near:
        return estimate
    scores = _score(net, proxy, _of_channels(exact, near), near, folder / 'kl', crew)
    return None if scores is None else rerank(estimate, ranked(scores), near, groups)


def _of_channels(sums_of: Callable[..., Sums], channels: dict[str, Tensor]) -> Callable[..., Sums]:
    return lambda net, batch, names, report: sums_of(
        net, batch, channels={name: channels[name] for name in names}, report=report
    )


def _of_gradients(sums_of: Callable[..., Sums]) -> Callable[..., Sums]:
    """All dims come from one backward pass; fewer gates would round differently, so all are always computed."""
    return lambda net, batch, names, report: (
        (name, sums) for name, sums in sums_of(net, batch, report=report) if name in names
    )


def _score(net, proxy: ImageSet, sums_of, channels: dict[str, Tensor], folder: Path, crew: Crew) -> Scores | None:
    """Run a method over this process's share of the images."""
    dims = prunable_dims(net.backbone.arch)
    mine = [proxy.size_of(k) for k in range(crew.rank, len(proxy), crew.size)]
    totals: dict[str, int] = {}
    for name, indices in channels.items():
        totals[dims[name].kind] = totals.get(dims[name].kind, 0) + sum(mine) * len(indices)
    with ScoringProgress(totals) as progress:

        def of_batch(batch: Batch, wanted: set[str]) -> Sums:
            return sums_of(net, batch, wanted, progress.advance)

        def resumed(name: str, images: int) -> None:
            progress.resume(dims[name].kind, images * len(channels[name]))

        return score_in_parts(proxy, of_batch, list(channels), folder, crew, resumed)
