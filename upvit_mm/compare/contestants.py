"""Backbones to compare in one detector, and whole detectors: given by the user, put into its config, checked before
hours of work."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import LOOPS, METRICS

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.checkpoints import check_state, load_backbone, read_checkpoint
from upvit_mm.data.class_numbers import check_class_numbers
from upvit_mm.files import sha256_of
from upvit_mm.models.arch_in_config import put_arch
from upvit_mm.models.trained_detector import load_trained, model_settings
from upvit_mm.registry import is_type, require_families, scope_of
from upvit_mm.workflow.detector_file import with_own_backbone
from upvit_mm.workflow.finetune import repeatable, set_epochs
from upvit_mm.workflow.record import BOX_AP
from upvit_mm.workflow.whole_detector import build_detector

SEED = '{seed}'  # in the path of a checkpoint
KINDS = ('bbox', 'segm')  # kinds of AP, with CocoMetric's names


@dataclass(frozen=True)
class Contestant:
    """A backbone to put into the detector, or a whole detector beside it.

    Attributes:
        name: its name in reports, and of its folder.
        arch: the architecture of its backbone.
        checkpoint: absolute path or address of its weights (of the whole detector where that is only evaluated), where
            ``{seed}`` stands for the seed of the detector's training; None = random weights.
        config: file with the config of a whole detector, whose model is taken as it is; None = a backbone alone.
    """

    name: str
    arch: ArchSpec
    checkpoint: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, text: str) -> Contestant:
        """``NAME=ARCH,CHECKPOINT`` or ``NAME=ARCH``, where ARCH is a stock name or an ``arch.json``; or
        ``NAME=CONFIG.py,CHECKPOINT`` for a whole detector.

        Raises:
            FileNotFoundError: no such ``arch.json``, config or checkpoint.
            ValueError: another form, a name that is not a plain folder name, an unknown arch, or the config of a
                detector whose backbone is neither ours nor one that converts (``own_backbone``).
        """
        name, _, rest = text.partition('=')
        arch, _, checkpoint = rest.partition(',')
        whole = arch.endswith('.py')
        if not arch or ((',' in rest or whole) and not checkpoint):
            raise ValueError(
                f'backbones: {text!r} must be NAME=ARCH,CHECKPOINT, NAME=ARCH for random weights, or '
                'NAME=CONFIG.py,CHECKPOINT for a whole detector.'
            )
        if not re.fullmatch(r'\w([\w.+-]*[\w+-])?', name) or re.search(r'\.(md|csv|json|png|html)$', name):
            raise ValueError(f'backbones: {name!r} cannot name a folder; use letters, digits and any of _ . + -')
        if checkpoint and '://' not in checkpoint:
            checkpoint = str(Path(checkpoint).expanduser().absolute())
        if whole:
            config = Path(arch).expanduser().absolute()
            contestant = cls(name, _arch_of(name, config), checkpoint, str(config))
        else:
            contestant = cls(name, resolve_arch(arch), checkpoint or None)
        return contestant if SEED in checkpoint else contestant.at(0)

    def at(self, seed: int) -> Contestant:
        """The same backbone with the weights of one seed.

        Raises:
            FileNotFoundError: no such checkpoint.
        """
        if self.checkpoint is None:
            return self
        found = replace(self, checkpoint=self.checkpoint.replace(SEED, str(seed)))
        for path in found.files:
            if not path.is_file():
                raise FileNotFoundError(f'backbones: {self.name}: checkpoint {str(path)!r} does not exist.')
        return found

    @property
    def files(self) -> tuple[Path, ...]:
        """Its checkpoint, if that is a local file."""
        return (Path(self.checkpoint),) if self.checkpoint and '://' not in self.checkpoint else ()

    def to_dict(self) -> dict[str, Any]:
        """Its origin, as plain data."""
        sha256 = next((sha256_of(path) for path in self.files if path.is_file()), None)  # none for several
        origin = {'name': self.name, 'checkpoint': self.checkpoint, 'sha256': sha256, 'arch': self.arch.to_dict()}
        return origin | {'config': self.config}


def _arch_of(name: str, config: Path) -> ArchSpec:
    if not config.is_file():
        raise FileNotFoundError(f'backbones: {name}: config {str(config)!r} does not exist.')
    try:
        return ArchSpec.from_dict(with_own_backbone(Config.fromfile(config)).model.backbone.arch)
    except ValueError as error:
        raise ValueError(f'backbones: {name} ({config}): {error}') from error


def check_detector_config(cfg: Config, trained: bool, built: bool = True) -> None:
    """Refuse a config that is not a detector with one of our backbones, evaluated by box AP.

    Args:
        cfg: of mmdet.
        trained: whether it will be trained, by epochs.
        built: whether backbones are put into its model; otherwise only its data and evaluator are used.

    Raises:
        ValueError: a setting is wrong; the message names it.
    """
    model = cfg.get('model') or {}
    if scope_of(cfg) == 'mmpretrain':
        raise ValueError(
            f'model.type = {model.get("type")!r}: the config is of a classifier (mmpretrain); give the config of a '
            'detector (mmdet). Classifiers are compared by tools/compare_classifiers.py.'
        )
    if built:
        require_families('model.backbone.type', (model.get('backbone') or {}).get('type'))
    if built and not model.get('neck'):
        raise ValueError('model.neck: must be there; its in_channels follow the backbone.')
    for name, value in (('model.init_cfg', model.get('init_cfg')), ('load_from', cfg.get('load_from'))):
        if trained and value:
            raise ValueError(f'{name} = {value!r}: would overwrite the weights of the backbones; set it to None.')
    for part in ('val', 'test') if trained else ('test',):
        if 'bbox' not in ap_kinds(cfg, part):
            raise ValueError(f"{part}_evaluator: must hold a CocoMetric with metric='bbox', which gives {BOX_AP.key}.")
    train_cfg = cfg.get('train_cfg') or {}
    by_epoch = train_cfg.get('by_epoch') or is_type(train_cfg.get('type'), 'EpochBasedTrainLoop', registry=LOOPS)
    if trained and not by_epoch:
        raise ValueError('train_cfg: must be there and count epochs (EpochBasedTrainLoop).')


def ap_kinds(cfg: Config, part: str) -> tuple[str, ...]:
    """The ``KINDS`` that a config's evaluator of ``'val'`` or ``'test'`` gives."""
    evaluators = cfg.get(f'{part}_evaluator') or {}
    found: set[str] = set()
    for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
        kind, known = evaluator.get('type'), dict(registry=METRICS, scope='mmdet')
        is_coco = is_type(kind, 'CocoMetric', **known) and not is_type(kind, 'LVISMetric', **known)  # other names
        if is_coco and not evaluator.get('format_only'):
            metric = evaluator.get('metric', 'bbox')
            found |= {metric} if isinstance(metric, str) else set(metric)
    return tuple(kind for kind in KINDS if kind in found)


def with_backbone(cfg: Config, contestant: Contestant, pretrained: bool = True) -> Config:
    """The detector's config with another backbone; of a whole detector, with its model. Nothing else changes.

    Args:
        cfg: the detector's.
        contestant: the backbone, or the whole detector.
        pretrained: whether it starts from the contestant's checkpoint.
    """
    cfg = copy.deepcopy(cfg)
    if contestant.config:
        own = with_own_backbone(Config.fromfile(contestant.config))
        cfg.model = model_settings(own)
        if 'custom_imports' in own:
            cfg.custom_imports = own.custom_imports
    else:
        put_arch(cfg.model, contestant.arch)
    if pretrained and contestant.checkpoint:
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=contestant.checkpoint)
    if 'arch' in cfg:
        cfg.arch = copy.deepcopy(cfg.model.backbone.arch)
    return cfg


def training_of(cfg: Config, seed: int, epochs: int | None, processes: int) -> Config:
    """Prepare a detector's config for ``Training``.

    Args:
        cfg: one of ``with_backbone``.
        seed: seed of everything random.
        epochs: number of epochs; None = the config's. Milestones and ends of schedules by epochs are scaled.
        processes: number of processes that share the batch; recorded, because it affects the result.
    """
    run = repeatable(copy.deepcopy(cfg), seed)
    run.judged_by = BOX_AP.key
    if processes > 1:
        run.processes = processes
    if epochs is not None:
        set_epochs(run, epochs)
    return run


def check_contestant(cfg: Config, contestant: Contestant, whole: bool):
    """The detector of a config of ``with_backbone``, its checkpoint checked.

    Args:
        cfg: config with the contestant in it.
        contestant: the backbone.
        whole: whether its checkpoint is of the whole detector.

    Raises:
        ValueError: another family than the config's backbone, a checkpoint that does not fit, or a whole detector with
            other classes than the data.
    """
    name = f'{contestant.name} ({contestant.checkpoint})'
    try:
        if contestant.config:  # its heads have classes of their own
            check_class_numbers(cfg, ('test',))
        resolve_arch(contestant.arch, require_families('model.backbone.type', cfg.model.backbone.type))
        detector = build_detector(cfg)
        if whole:
            if not contestant.files:
                raise ValueError('evaluation alone needs the file of a whole detector: NAME=ARCH,CHECKPOINT.')
            load_trained(detector, read_checkpoint(contestant.checkpoint), contestant.checkpoint)
        elif contestant.checkpoint:
            arch = contestant.arch.name or 'custom'
            state = load_backbone(contestant.checkpoint, arch=contestant.arch)
            check_state(state, detector.backbone.state_dict(), f'arch {arch}')
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'backbones: {name}: {error}') from error
    return detector
