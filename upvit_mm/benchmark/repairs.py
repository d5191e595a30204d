"""The benchmark of repairs: how far a pruned classifier is from the dense one, before any training.

Every row gets the same widths and the same unlabelled pictures for its moments, scores and repair.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from upvit_mm import __version__
from upvit_mm.arch import ArchSpec
from upvit_mm.benchmark.pruning import scaled
from upvit_mm.benchmark.repair_rivals import corp_like, grail_like, sparsegpt_like, state_of
from upvit_mm.choices import REPAIRED
from upvit_mm.consistency.cka import LinearCKA
from upvit_mm.data.image_set import ImageSet, held_out_set, proxy_set
from upvit_mm.pruning import PrunePlan, plan_for_target, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.compensate import compensate, steps_of
from upvit_mm.pruning.criteria import log_posteriors
from upvit_mm.pruning.importance import Scores
from upvit_mm.pruning.knobs import Grain
from upvit_mm.pruning.methods import FISHER, MAGNITUDE
from upvit_mm.pruning.scoring import scores_by
from upvit_mm.pruning.slicer import State
from upvit_mm.pruning.spending import target_for_budget
from upvit_mm.pruning.token_net import TokenNet
from upvit_mm.pruning.walk import Walk
from upvit_mm.stopwatch import device_name
from upvit_mm.table import Table
from upvit_mm.workflow.dense_classifier import DenseClassifier
from upvit_mm.workflow.posteriors import build_net
from upvit_mm.workflow.prune_settings import PruneSettings

logger = logging.getLogger('upvit_mm')
Repair = Callable[[Walk, PrunePlan, Sequence[Batch], float], State]  # dense, plan, images, ridge -> pruned
OURS = 'ours: token directions, all layers repaired'
WRITERS = ('attn.proj', 'mlp.fc2', 'head')
TOKEN_BATCHES = 2  # of the held-out images, for CKA
MEASURES = {'kl': 4, 'top1': 1, 'cka': 3, 'cka_twice': 3}  # digits after the point


def ours(net: Walk, plan: PrunePlan, batches: Sequence[Batch], ridge: float) -> State:
    """The package's own compensation, which chooses a ridge for each layer; see ``compensate``."""
    return _compensated(net, plan, batches, None)


def writers_repaired(net: Walk, plan: PrunePlan, batches: Sequence[Batch], ridge: float) -> State:
    """The package's first compensation: of the layers that write to the residual stream and the head only."""
    readers = [step for step in steps_of(plan, has_head=True) if not step.endswith(WRITERS)]
    return _compensated(net, plan, batches, ridge, readers)


def _compensated(
    net: Walk, plan: PrunePlan, batches: Sequence[Batch], ridge: float | None, done: Sequence[str] = ()
) -> State:
    pruned = build_net(plan.target_arch, slice_state(state_of(net), plan))
    compensate(net, pruned, plan, batches, ridge, done=done)
    return state_of(pruned)


@dataclass(frozen=True)
class Row:
    """A way to prune.

    Attributes:
        scores: which channels stay: ``'tokens'`` (directions of the turned network), ``'posterior'`` or
            ``'magnitude'``.
        repair: of the sliced network.
    """

    scores: str
    repair: Repair


ROWS = {
    'posterior channels, writers repaired': Row('posterior', writers_repaired),
    OURS: Row('tokens', ours),
    'magnitude channels, Gram ridge (GRAIL-like)': Row('magnitude', grail_like),
    'posterior channels, optimal-brain update (SparseGPT-like)': Row('posterior', sparsegpt_like),
    'posterior channels, affine maps and logits (CORP-like)': Row('posterior', corp_like),
}


def benchmark_repairs(
    cfg: Config,
    checkpoint: str,
    budget: Budget,
    widths: Sequence[str] = tuple(REPAIRED),
    seeds: Sequence[int] = (0,),
    per_class: int = 16,
    ridge: float = 1e-2,
    eval_images: int = 600,
    round_to: int = 8,
    threads: int | None = None,
) -> dict[str, Any]:
    """Figures of every row at every choice of widths.

    Args:
        cfg: the mmpretrain config of a trained classifier.
        checkpoint: its weights.
        budget: of the pruned networks.
        widths: keys of ``REPAIRED``.
        seeds: of the images; all rows of a seed have the same ones.
        per_class: images of every class.
        ridge: of all repairs but ours.
        eval_images: held-out images for evaluation.
        round_to: see ``Grain``.
        threads: CPU threads; None keeps torch's setting.

    Returns:
        ``settings``, ``dense`` and ``rows``: by widths and row, for each seed, ``kl`` to the dense posteriors, ``top1``
        in %, ``cka`` of the last stage at the config's size and ``cka_twice`` at twice that; and ``widths``, each
        seed's architecture.

    Raises:
        ValueError: a checkpoint without a head, a ridge not above 0, or a budget that cannot be met; see
            ``DenseClassifier`` and ``ImageSet``.
    """
    if not ridge > 0:
        raise ValueError(f'ridge = {ridge}: must be above 0.')
    if threads:
        torch.set_num_threads(threads)
    init_default_scope('mmpretrain')
    dense = DenseClassifier(cfg, checkpoint)
    if not dense.num_classes:
        raise ValueError(
            f'checkpoint {checkpoint!r} has no linear head: class posteriors are compared; give one that has.'
        )
    reference = Reference(dense.net, held_out_set(cfg, eval_images, seed=0))
    settings = {'budget': str(budget), 'seeds': list(seeds), 'per_class': per_class, 'ridge': ridge}
    settings |= {'eval_images': eval_images, 'round_to': round_to, 'arch': dense.arch.name}
    settings |= {'threads': torch.get_num_threads(), 'machine': device_name('cpu')}
    settings |= {'torch': torch.__version__, 'upvit_mm': __version__}
    rows = {REPAIRED[key]: {name: [] for name in ROWS} for key in widths}
    results = {'settings': settings, 'dense': reference.judge(dense.net), 'rows': rows, 'widths': {}}
    for seed in seeds:
        starts = starts_of(cfg, checkpoint, proxy := proxy_set(cfg, per_class, seed), seed)
        logger.info('seed %d scored', seed)
        for key in widths:
            target = target_of(key, starts, budget, round_to)
            results['widths'].setdefault(REPAIRED[key], []).append(target.to_dict())
            for name, row in ROWS.items():
                plan = starts[row.scores].plan(target)
                state = row.repair(starts[row.scores].dense.net, plan, proxy, ridge)
                figures = reference.judge(build_net(plan.target_arch, state))
                rows[REPAIRED[key]][name].append(figures)
                logger.info('seed %d, %s, %s: %s', seed, REPAIRED[key], name, figures)
    return results


@dataclass(frozen=True)
class Start:
    """A dense network, and the scores of its channels or directions."""

    dense: DenseClassifier
    scores: Scores

    def plan(self, target: ArchSpec) -> PrunePlan:
        """The plan for these widths."""
        return plan_for_target(self.dense.arch, target, self.scores, turned=self.dense.turned)


def starts_of(cfg: Config, checkpoint: str, proxy: ImageSet, seed: int) -> dict[str, Start]:
    """By the scores' name, see ``Row``. Heads are turned for the token scores, and the stream where that is exact."""
    plain, turned = DenseClassifier(cfg, checkpoint), DenseClassifier(cfg, checkpoint)
    settings = PruneSettings(seed=seed, criterion='posterior')
    directions = PruneSettings(
        seed=seed,
        criterion='tokens',
        attention='lowrank',
        embed='channels' if turned.arch.kind.is_pyramid else 'rotate',
    )
    turned.take_turned(directions, turned.turn(directions, proxy), turned.sha256)

    def scored(dense: DenseClassifier, method, how: PruneSettings) -> Start:
        net, criterion = dense.scored(how, proxy)
        return Start(dense, scores_by(method, net, dense.state, proxy, asdict(how), criterion))

    return {
        'posterior': scored(plain, FISHER, settings),
        'magnitude': scored(plain, MAGNITUDE, settings),
        'tokens': scored(turned, FISHER, directions),
    }


def target_of(key: str, starts: dict[str, Start], budget: Budget, round_to: int) -> ArchSpec:
    """The widths of a key of ``REPAIRED``, which all rows get."""
    dense = next(iter(starts.values())).dense
    if key == 'half':
        return scaled(dense.arch, 1.0, 0.5)
    scores = starts[key].scores if key in starts else None
    return target_for_budget(dense.arch, budget, Grain(round_to), dense.num_classes, scores)


class Reference:
    """What the dense network gives on held-out images.

    Args:
        net: the dense classifier.
        images: with labels.
    """

    def __init__(self, net: Walk, images: ImageSet):
        self.images = images
        self.posteriors, self.tokens = self._posteriors(net), [*self._tokens(net)]

    def judge(self, net: Walk) -> dict[str, float]:
        """``kl`` to the dense posteriors, ``top1`` in %, ``cka`` of the last stage and ``cka_twice``."""
        found, labels = self._posteriors(net), torch.cat([batch.labels for batch in self.images])
        divergence = (self.posteriors.exp() * (self.posteriors - found)).sum(dim=1).mean().item()
        figures = {'kl': divergence, 'top1': 100 * (found.argmax(dim=1) == labels).double().mean().item()}
        measures = {1: LinearCKA(), 2: LinearCKA()}
        for (times, theirs), (_, mine) in zip(self.tokens, self._tokens(net)):
            measures[times].update(theirs, mine)
        return figures | {'cka': measures[1].compute()['cka'], 'cka_twice': measures[2].compute()['cka']}

    @torch.inference_mode()
    def _posteriors(self, net: Walk) -> Tensor:
        return torch.cat([log_posteriors(net(batch.images)) for batch in self.images])

    @torch.inference_mode()
    def _tokens(self, net: Walk) -> list[tuple[int, Tensor]]:
        """Tokens ``(B, N, C)`` of the last stage of some batches, at the config's size and at twice that."""
        net, found = TokenNet(net.backbone), []
        for k in range(min(TOKEN_BATCHES, len(self.images))):
            images = self.images[k].images
            larger = F.interpolate(images, scale_factor=2, mode='bicubic', antialias=True)
            found += [(times, net(x)[-1][0]) for times, x in ((1, images), (2, larger))]
        return found


def tables_of(results: dict[str, Any]) -> list[tuple[str, Table]]:
    """Title and table for each choice of widths: medians over seeds, and the KL divided by ours of the same seed."""
    settings, tables = results['settings'], []
    for widths, rows in results['rows'].items():
        cells = []
        for name, by_seed in rows.items():
            values = {key: statistics.median(figures[key] for figures in by_seed) for key in MEASURES}
            kl, top1, *cka = (f'{values[key]:.{digits}f}' for key, digits in MEASURES.items())
            ratio = statistics.median(mine['kl'] / best['kl'] for mine, best in zip(by_seed, rows[OURS]))
            cells.append([name, kl, f'{ratio:.2f}x', top1, *cka])
        dense = results['dense']['top1']
        title = f'{widths} ({settings["budget"]}, dense top-1 {dense:.1f}, median of {len(settings["seeds"])} seeds)'
        header = ['pruned and repaired', 'KL', 'KL / ours', 'top-1', 'CKA', 'CKA at twice the size']
        tables.append((title, Table(header, cells)))
    return tables
