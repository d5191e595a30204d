"""The pruning benchmark: speed of the scores, agreement of estimates with exact scores, and their worth."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy.stats import spearmanr

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.checkpoints import load_classifier
from upvit_mm.data.image_set import ImageSet, held_out_set, proxy_set
from upvit_mm.models import build_backbone
from upvit_mm.pruning import PrunableDim, make_plan, plan_for_target, prunable_dims, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.compensate import compensate
from upvit_mm.pruning.criteria import log_posteriors
from upvit_mm.pruning.importance import Scores, exact_scores, exact_sums, fisher_scores
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.scoring import scores_by
from upvit_mm.stopwatch import device_name, process_peak, seconds
from upvit_mm.workflow.posteriors import build_net, judge
from upvit_mm.workflow.prune_settings import PruneSettings

logger = logging.getLogger('upvit_mm')
TARGETS = {'half of attention and FFN': (1.0, 0.5), 'three quarters of every width': (0.75, 0.75)}
FISHER_DRAWS = 4  # of the timings
AGREEMENT_DRAWS = 16
LARGE_CANDIDATES = 17  # channels of each dim that are timed in the large network: more than 200 in all


def benchmark_pruning(
    cfg: Config,
    checkpoint: str,
    seeds: Sequence[int] = (0, 1, 2),
    per_class: int = 10,
    compensate_per_class: int = 40,
    ridge: float | None = None,
    eval_images: int = 1000,
    threads: int | None = None,
) -> dict[str, Any]:
    """All figures of one trained classifier.

    Args:
        cfg: its mmpretrain config.
        checkpoint: its weights.
        seeds: seeds of proxy sets and of random parts of the methods.
        per_class: images of every class for scoring.
        compensate_per_class: images of every class for compensation.
        ridge: of the compensation.
        eval_images: held-out images for evaluation.
        threads: CPU threads; None keeps torch's setting.
    """
    if threads:
        torch.set_num_threads(threads)
    init_default_scope('mmpretrain')
    arch = resolve_arch(cfg.model.backbone.arch)
    state = load_classifier(checkpoint, arch=arch)
    net = build_net(arch, state)
    held_out = held_out_set(cfg, eval_images, seed=0)
    sets = {seed: proxy_set(cfg, per_class, seed) for seed in seeds}
    batch = sets[seeds[0]][0]
    results = {
        'settings': {
            'arch': arch.name,
            'per_class': per_class,
            'compensate_per_class': compensate_per_class,
            'ridge': ridge,
            'seeds': list(seeds),
            'threads': torch.get_num_threads(),
            'machine': device_name('cpu'),
            'torch': torch.__version__,
        },
        'candidate': time_candidates(net, state, batch),
        'all channels': time_all_channels(net, batch),
    }
    logger.info('timed; now the scores of %d proxy sets', len(seeds))
    scores = {seed: score_by_every_method(net, state, sets[seed], seed) for seed in seeds}
    agreed = fisher_scores(net, sets[seeds[0]], draws=AGREEMENT_DRAWS, seed=seeds[0])
    results['agreement'] = agreement(scores[seeds[0]]['exact'], agreed) | {'draws': AGREEMENT_DRAWS}
    images = {seed: proxy_set(cfg, compensate_per_class, seed) for seed in seeds}
    results['one-shot'] = {
        name: one_shot(net, state, scaled(arch, *shares), scores, images, held_out, ridge)
        for name, shares in TARGETS.items()
    }
    results['peak_memory_bytes'] = process_peak('cpu')
    return results


def one_shot(
    net: PosteriorNet,
    state: dict,
    target: ArchSpec,
    scores: dict[int, dict[str, Scores]],
    images: dict[int, ImageSet],
    held_out: ImageSet,
    ridge: float | None,
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Results of ``judge`` for each method: plain and compensated, one result per seed.

    Args:
        net: the dense classifier.
        state: its weights.
        target: widths to reach.
        scores: by seed and method.
        images: images for compensation, by seed.
        held_out: images for evaluation.
        ridge: of the compensation.
    """
    rows = {method: {'plain': [], 'compensated': []} for method in next(iter(scores.values()))}
    for seed, by_method in scores.items():
        for method, values in by_method.items():
            plan = plan_for_target(net.backbone.arch, target, values)
            pruned = build_net(target, slice_state(state, plan))
            rows[method]['plain'].append(judge(net, pruned, held_out))
            compensate(net, pruned, plan, images[seed], ridge)
            rows[method]['compensated'].append(judge(net, pruned, held_out))
        logger.info('seed %d evaluated', seed)
    return rows


def scaled(arch: ArchSpec, embed: float, rest: float) -> ArchSpec:
    """An architecture with shares of the embedding and of the other widths; the number of heads stays."""

    def share(values):
        return [[round(w * rest) for w in stage] for stage in values]

    widths = {field: share(getattr(arch, field)) for field in ('qk_dims', 'v_dims', 'mlp_hidden_dims')}
    return arch.with_widths({'embed_dims': [round(w * embed) for w in arch.embed_dims], **widths})


def time_candidates(net: PosteriorNet, state: dict, batch: Batch, repeats: int = 3) -> dict[str, Any]:
    """Seconds per candidate of every dim: our way and the authors' way, alternately on the same images.

    The authors' way: build the network without the channel, run it and the dense one, compare. Heads must keep equal
    widths, so there the rebuilt network lacks one channel of each head; that costs the same.
    """
    rows = {}
    for dim in prunable_dims(net.backbone.arch).values():
        count = min(dim.size, 64)
        ours, theirs = [], []
        for k in range(repeats):
            theirs.append(seconds(lambda dim=dim, k=k: kl_by_rebuilding(net, state, dim, k, batch)))
            some = {dim.name: torch.arange(count)}
            ours.append(seconds(lambda some=some: dict(exact_sums(net, batch, some))) / count)
        rows[dim.name] = {'ours': min(ours), 'authors': min(theirs), 'ratio': min(theirs) / min(ours)}
    return {'by dim': rows, 'median ratio': statistics.median(row['ratio'] for row in rows.values())}


@torch.inference_mode()
def kl_by_rebuilding(net: PosteriorNet, state: dict, dim: PrunableDim, channel: int, batch: Batch) -> float:
    """The authors' procedure for one candidate: mean KL over the images."""
    run = dim.size // dim.groups
    lost = {group * run + channel % run for group in range(dim.groups)}
    plan = make_plan(net.backbone.arch, {dim.name: [c for c in range(dim.size) if c not in lost]})
    pruned = build_net(plan.target_arch, slice_state(state, plan))
    p, q = log_posteriors(net(batch.images)), log_posteriors(pruned(batch.images))
    return (p.exp() * (p - q)).sum(dim=1).mean().item()


def time_all_channels(net: PosteriorNet, batch: Batch) -> dict[str, float]:
    """Seconds for every channel of every dim on one batch: exact and estimated."""
    fisher_scores(net, [batch], draws=1)  # warm up
    fisher = min(seconds(lambda: fisher_scores(net, [batch], draws=FISHER_DRAWS)) for _ in range(3))
    exact = seconds(lambda: exact_scores(net, [batch]))
    return {'fisher': fisher, 'kl': exact, 'ratio': exact / fisher, 'images': len(batch.images)}


def time_large_network(
    name: str | ArchSpec = 'deit-small',
    images: int = 4,
    classes: int = 1000,
    threads: int | None = None,
    device: str = 'cpu',
    candidates: int = LARGE_CANDIDATES,
    amp: str | None = None,
) -> dict[str, Any]:
    """The same for a network of an architecture (random weights, random images); ``kl`` is extrapolated.

    In every dim the time of ``candidates`` channels is measured and scaled to the dim's size. With ``amp`` the estimate
    is also timed in that precision (``'fisher amp'``).
    """
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    arch = resolve_arch(name)
    empty = PosteriorNet(build_backbone(arch, out_indices=(-1,)), torch.nn.Linear(arch.embed_dims[-1], classes))
    empty.to(device)
    batch = Batch(torch.randn(images, 3, arch.img_size, arch.img_size).to(device), range(images))
    forward = min(seconds(lambda: _forward(empty, batch)) for _ in range(3))
    fisher = {
        kind: min(seconds(lambda kind=kind: fisher_scores(empty, [batch], draws=FISHER_DRAWS, amp=kind)) for _ in 'ab')
        for kind in dict.fromkeys((None, amp))
    }
    exact, timed, channels = 0.0, 0, 0
    for dim in prunable_dims(arch).values():
        some = {dim.name: torch.arange(min(dim.size, candidates))}
        # the dense run is once per batch, not once per dim, so it is not part of a candidate
        spent = seconds(lambda some=some: dict(exact_sums(empty, batch, some, max_rows=candidates * images)))
        exact += max(spent - forward, 0.0) / len(some[dim.name]) * dim.size
        timed, channels = timed + len(some[dim.name]), channels + dim.size
        logger.info('%s timed', dim.name)
    return {
        'arch': arch.name,
        'images': images,
        'channels': channels,
        'timed candidates': timed,
        'forward': forward,
        'fisher': fisher[None],
        **({} if amp is None else {'fisher amp': fisher[amp]}),
        'kl': exact,
        'ratio': exact / fisher[None],
        'candidate in forward passes': exact / channels / forward,
        'threads': torch.get_num_threads(),
    }


def score_by_every_method(net: PosteriorNet, state: dict, proxy: ImageSet, seed: int) -> dict[str, Scores]:
    """Scores by method and dim, of all methods except those that need a plan."""
    settings = asdict(PruneSettings(draws=FISHER_DRAWS, seed=seed))
    methods = [method for method in METHODS.values() if method.near_cut is None]
    return {method.name: scores_by(method, net, state, proxy, settings) for method in methods}


def agreement(exact: Scores, estimate: Scores) -> dict[str, Any]:
    """Spearman's rank correlation of two sets of scores, by dim."""
    by_dim = {name: float(spearmanr(exact[name], estimate[name]).statistic) for name in exact}
    worst = min(by_dim, key=by_dim.get)
    return {'by dim': by_dim, 'median': statistics.median(by_dim.values()), 'worst': by_dim[worst], 'worst dim': worst}


@torch.inference_mode()
def _forward(net: PosteriorNet, batch: Batch) -> torch.Tensor:
    return net(batch.images)
