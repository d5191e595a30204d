"""How good the features of backbones are, without a head: k nearest neighbours and a linear probe on labelled pictures.

Shape legend: ``n`` training pictures, ``m`` validation pictures, ``C`` embed_dims, ``k`` neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy.stats import binomtest
from torch import Tensor, nn

from upvit_mm import __version__
from upvit_mm.arch.size import Size, size_text
from upvit_mm.checkpoints import check_state, load_backbone
from upvit_mm.compare.cells import Difference
from upvit_mm.compare.contestants import SEED, Contestant
from upvit_mm.compare.paired import LEVEL, paired_difference
from upvit_mm.data.checks import check_part
from upvit_mm.data.image_set import ImageSet, part_data
from upvit_mm.models import build_backbone
from upvit_mm.pruning.full_precision import full_precision
from upvit_mm.pruning.walk import Place, Reads, Walk
from upvit_mm.stopwatch import device_name
from upvit_mm.table import Table

logger = logging.getLogger('upvit_mm')
CLASS_TOKEN, PATCHES = 'class token', 'mean of patch tokens'
TEMPERATURE = 0.07  # of the votes of neighbours: DINO (arXiv 2104.14294), as is 20 neighbours
AT_ONCE = 4096  # validation pictures whose cosines with all training pictures are in memory
PENALTY = 0.01  # of the probe's squared weights, beside the mean cross-entropy
PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)  # of all published weights


class FeatureNet(Walk):
    """A backbone that gives features of a picture: its class token, and the mean of its patch tokens beside it."""

    @property
    def places(self) -> tuple[Place, ...]:
        return self.backbone.places[-1:]

    def outputs(self, reads: Reads) -> dict[str, Tensor]:
        """Features ``(B, C)`` of the normalised tokens after the last block; a PVTv2 has no class token."""
        tokens, prefix = reads[self.places[0]][0], self.backbone.num_prefix_tokens  # (B, P+N, C)
        found = {CLASS_TOKEN: tokens[:, 0]} if self.backbone.arch.kind.reads_class_token else {}
        return found | {PATCHES: tokens[:, prefix:].mean(dim=1)}


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of the measurement.

    Attributes:
        data: folder with ``train`` and ``val``, each with a folder for every class.
        size: ``(height, width)`` in pixels to which pictures are stretched.
        num_train: random training pictures.
        num_val: random validation pictures.
        seed: of the choice of pictures.
        neighbours: k of the k nearest neighbours.
        device: where networks run.

    Raises:
        ValueError: a number below 1, or more neighbours than training pictures.
    """

    data: str
    size: Size
    num_train: int = 2400
    num_val: int = 600
    seed: int = 0
    neighbours: int = 20
    device: str = 'cpu'

    def __post_init__(self):
        for name in ('num_train', 'num_val', 'neighbours'):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f'{name} = {value}: must be at least 1.')
        if self.neighbours > self.num_train:
            raise ValueError(
                f'neighbours = {self.neighbours}: must be at most num_train = {self.num_train}, the pictures there are.'
            )


def benchmark_features(networks: Sequence[str], settings: FeatureSettings) -> dict[str, Any]:
    """The accuracy of both classifiers on the features of every network, and its difference to the first network.

    Args:
        networks: each ``NAME=ARCH,CHECKPOINT``; ARCH is a stock name or an ``arch.json``.
        settings: the pictures, and the neighbours.

    Returns:
        ``settings``, ``networks`` (their origins) and ``rows``: one for each network, feature and classifier, with
        ``accuracy`` and its 95 % ``interval`` in %, ``difference`` to the first network in points
        (``paired_difference`` over the pictures) and ``share`` of the first network's accuracy in %.

    Raises:
        FileNotFoundError: a checkpoint, an ``arch.json`` or a folder is missing.
        ValueError: a network or the folders do not fit, see ``networks_of`` and ``pictures_of``.
    """
    contestants = networks_of(networks)
    nets = {entry.name: _built(entry).to(settings.device) for entry in contestants}  # refuse before hours of reading
    train, val = pictures_of(settings)
    labels, truth = (torch.cat([batch.labels for batch in images]).to(settings.device) for images in (train, val))
    right: dict[str, dict[tuple[str, str], Tensor]] = {}
    for name, net in nets.items():
        mine, theirs = features_of(net, train), features_of(net, val)
        right[name] = {}
        for feature in mine:
            guesses = {
                'k-NN': nearest(mine[feature], labels, theirs[feature], settings.neighbours),
                'linear probe': probe(mine[feature], labels, theirs[feature]),
            }
            right[name] |= {(feature, how): (guess == truth).cpu() for how, guess in guesses.items()}
        logger.info('%s measured', name)
    told = asdict(settings) | {'temperature': TEMPERATURE, 'penalty': PENALTY, 'threads': torch.get_num_threads()}
    told |= {'size': size_text(settings.size), 'machine': device_name(settings.device)}
    told |= {'torch': torch.__version__, 'upvit_mm': __version__}
    return {'settings': told, 'networks': [entry.to_dict() for entry in contestants], 'rows': rows_of(right)}


def networks_of(texts: Sequence[str]) -> list[Contestant]:
    """The networks that a user named.

    Raises:
        FileNotFoundError: no such checkpoint or ``arch.json``.
        ValueError: another form than ``NAME=ARCH,CHECKPOINT``, or a name that is given twice.
    """
    found = [Contestant.parse(text) for text in texts]
    for text, entry in zip(texts, found):
        if entry.config or entry.checkpoint is None or SEED in entry.checkpoint:
            raise ValueError(f'networks: {text!r} must be NAME=ARCH,CHECKPOINT, one file of a backbone.')
        if sum(entry.name == other.name for other in found) > 1:
            raise ValueError(f'networks: {entry.name!r} is given several times; give each network its own name.')
    return found


def _built(entry: Contestant) -> FeatureNet:
    backbone = build_backbone(entry.arch)
    state = load_backbone(entry.checkpoint, arch=entry.arch)
    check_state(state, backbone.state_dict(), f'{entry.name} (checkpoint={entry.checkpoint})')
    backbone.load_state_dict(state)
    return FeatureNet(backbone)


def pictures_of(settings: FeatureSettings) -> tuple[ImageSet, ImageSet]:
    """Random training and validation pictures with their labels.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: fewer pictures than are wanted, or class folders that do not fit (``check_part``).
    """
    init_default_scope('mmpretrain')
    height, width = settings.size
    stretch = dict(type='Resize', scale=(width, height), interpolation='bicubic')
    pipeline = [dict(type='LoadImageFromFile'), stretch, dict(type='PackInputs')]
    loaders = {
        f'{part}_dataloader': dict(
            dataset=dict(type='CustomDataset', data_root=settings.data, data_prefix=part, pipeline=pipeline)
        )
        for part in ('train', 'val')
    }
    cfg = Config(dict(default_scope='mmpretrain', model=dict(), data_preprocessor=PIXELS, **loaders))
    counts = {'train': settings.num_train, 'val': settings.num_val}
    for part in counts:
        check_part(cfg, part)
    return tuple(
        ImageSet(cfg, part_data(cfg, part), _some(part, count, settings), 32, settings.device).read()
        for part, count in counts.items()
    )


def _some(part: str, count: int, settings: FeatureSettings) -> Callable[[np.ndarray], list[int]]:
    def choose(labels: np.ndarray) -> list[int]:
        if len(labels) < count:
            raise ValueError(
                f'num_{part} = {count}: {settings.data}/{part} has {len(labels)} pictures; take at most as many.'
            )
        return np.sort(np.random.default_rng(settings.seed).permutation(len(labels))[:count]).tolist()

    return choose


@torch.inference_mode()
@full_precision()
def features_of(net: FeatureNet, images: ImageSet) -> dict[str, Tensor]:
    """By feature, float64 on the network's device: ``(pictures, C)``."""
    found: dict[str, list[Tensor]] = {}
    for batch in images:
        for name, values in net(batch.images).items():
            found.setdefault(name, []).append(values.double())
    return {name: torch.cat(values) for name, values in found.items()}


# --------------------------------------------------------------------------- classifiers


def nearest(train: Tensor, labels: Tensor, val: Tensor, neighbours: int) -> Tensor:
    """The classes that neighbours vote for; the weight of a vote is ``exp(cosine / TEMPERATURE)`` (arXiv 2104.14294).

    Args:
        train: ``(n, C)``.
        labels: ``(n,)``, from 0, on the same device.
        val: ``(m, C)``.
        neighbours: k; those with the largest cosines vote.

    Returns:
        ``(m,)``.
    """
    classes, directions, winners = int(labels.max()) + 1, F.normalize(train, dim=1).T, []
    for some in F.normalize(val, dim=1).split(AT_ONCE):
        cosines, places = (some @ directions).topk(neighbours, dim=1)  # (some, k)
        votes = (cosines / TEMPERATURE).softmax(dim=1)  # the same winner, without overflow
        winners.append(votes.new_zeros(len(some), classes).scatter_add_(1, labels[places], votes).argmax(dim=1))
    return torch.cat(winners)


def probe(train: Tensor, labels: Tensor, val: Tensor) -> Tensor:
    """The classes that a logistic regression gives: mean cross-entropy and ``PENALTY`` times the squared weights.

    Channels are standardised by the training pictures. Nothing is random.

    Args:
        train, labels, val: see ``nearest``.

    Returns:
        ``(m,)``.
    """
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0).clamp_min(1e-12)
    train, val = (train - mean) / std, (val - mean) / std
    weights = nn.Parameter(train.new_zeros(train.shape[1], int(labels.max()) + 1))  # (C, classes)
    bias = nn.Parameter(train.new_zeros(weights.shape[1]))
    solver = torch.optim.LBFGS([weights, bias], max_iter=500, tolerance_grad=1e-6, line_search_fn='strong_wolfe')

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(train @ weights + bias, labels) + PENALTY * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return (val @ weights.detach() + bias.detach()).argmax(dim=1)


# --------------------------------------------------------------------------- results


def rows_of(right: dict[str, dict[tuple[str, str], Tensor]]) -> list[dict[str, Any]]:
    """The rows of ``benchmark_features``.

    Args:
        right: by network, and by feature and classifier: for each picture whether its class was found, ``(m,)``.
    """
    reference, rows = next(iter(right.values())), []
    for name, found in right.items():
        for (feature, how), hits in found.items():
            count = binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL, method='wilson')
            row = {'network': name, 'feature': feature, 'classifier': how}
            row |= {'accuracy': 100 * hits.double().mean().item(), 'interval': [100 * count.low, 100 * count.high]}
            if (other := reference.get((feature, how))) is not None:
                row['difference'] = paired_difference(*(100 * x.double().numpy() for x in (hits, other)))
                best = 100 * other.double().mean().item()
                row['share'] = 100 * row['accuracy'] / best if best else None
            rows.append(row)
    return rows


def tables_of(results: dict[str, Any]) -> list[tuple[str, Table]]:
    """Title and table for each feature and classifier."""
    header = ['network', 'accuracy % [95 %]', 'over the first, points [95 %]', 'share of the first %']
    settings, tables = results['settings'], {}
    for row in results['rows']:
        low, high = row['interval']
        cells = [row['network'], f'{row["accuracy"]:.1f} [{low:.1f}, {high:.1f}]']
        known = 'difference' in row
        cells.append(Difference.of(row['difference']).markdown() if known else '-')
        cells.append(f'{row["share"]:.1f}' if known and row['share'] is not None else '-')
        title = f'{row["classifier"]}, {row["feature"]}, {settings["size"]}, {settings["num_train"]} training pictures'
        tables.setdefault(title, []).append(cells)
    return [(title, Table(header, rows)) for title, rows in tables.items()]
