"""From the config of a dense classifier to the configs that train smaller ones, with and without a teacher."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import LOOPS

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.data.image_set import choose_images
from upvit_mm.models.arch_in_config import put_arch
from upvit_mm.registry import HOOKS as OUR_HOOKS
from upvit_mm.registry import MODELS, is_type, require_families
from upvit_mm.workflow.lesson import Lesson

CLASSIFIERS = ('ImageClassifier', 'mmpretrain.ImageClassifier')
STUDENT = 'upvit_mm.DistillClassifier'
HOOKS = ('upvit_mm.StopOnNonFiniteLoss', 'upvit_mm.SeedEveryEpoch')  # of every training


def check_dense_config(cfg: Config) -> None:
    """Refuse a config that is not a classifier with one of our backbones, trained by epochs.

    Raises:
        ValueError: a setting is wrong; the message names it.
    """
    model = cfg.get('model') or {}
    kind = model.get('type')
    known = is_type(kind, *CLASSIFIERS, registry=MODELS, scope='mmpretrain')
    if not known or is_type(kind, STUDENT, registry=MODELS):
        raise ValueError(f"model.type = {kind!r}: must be 'ImageClassifier', the dense network's config.")
    require_families('model.backbone.type', model.backbone.type)
    train_cfg = cfg.get('train_cfg') or {}
    if not (train_cfg.get('by_epoch') or is_type(train_cfg.get('type'), 'EpochBasedTrainLoop', registry=LOOPS)):
        raise ValueError('train_cfg: must be there and count epochs (EpochBasedTrainLoop).')


def without_teacher(cfg: Config) -> Config:
    """The config of the dense network that is the teacher in a recipe of distillation; any other config unchanged.

    Data, augmentation, schedule and loss on labels are the recipe's; network and head are the teacher's.

    Raises:
        ValueError: the teacher has its own preprocessing.
    """
    if not is_type(cfg.model.type, STUDENT, registry=MODELS):
        return cfg
    cfg = copy.deepcopy(cfg)
    teacher = cfg.model.teacher
    if teacher.get('data_preprocessor'):
        raise ValueError("teacher.data_preprocessor: the dense network's own preprocessing is not supported here.")
    arch = resolve_arch(teacher.backbone.arch)
    for key in ('teacher', 'distill', 'init_cfg'):
        cfg.model.pop(key, None)
    cfg.model.type = CLASSIFIERS[0]
    put_arch(cfg.model, arch)
    return cfg


def balanced_subset(cfg: Config, count: int, seed: int) -> Config:
    """The config with ``count`` training images, the same number of each class, chosen by ``seed``.

    Raises:
        ValueError: ``count`` is not a multiple of the classes, or a class has too few images.
    """
    from mmpretrain.registry import DATASETS

    classes, dataset = cfg.model.head.num_classes, cfg.train_dataloader.dataset
    if count % classes:
        raise ValueError(f'train_images = {count}: must be a multiple of the {classes} classes.')
    if 'dataset' in dataset or 'datasets' in dataset or 'indices' in dataset:
        raise ValueError(f'train_dataloader.dataset: no subset can be taken of {dataset.type} with these settings.')
    labels = DATASETS.build(dict(dataset, pipeline=[], _scope_='mmpretrain')).get_gt_labels()
    cfg = copy.deepcopy(cfg)
    cfg.train_dataloader.dataset.indices = choose_images(labels, count // classes, seed, classes)
    return cfg


def classifier(cfg: Config, arch: ArchSpec, init: Path | None = None) -> ConfigDict:
    """The model of a dense config in another architecture.

    Args:
        cfg: the dense classifier's.
        arch: the architecture.
        init: weights of backbone and head to start from; None = from scratch.
    """
    model = copy.deepcopy(cfg.model)
    put_arch(model, arch)
    if init is not None:
        model.init_cfg = dict(type='Pretrained', checkpoint=str(init))
    return model


def taught(model: ConfigDict, cfg: Config, checkpoint: Path, lesson: Lesson, plans: Sequence[Path] = ()) -> ConfigDict:
    """A model of ``classifier`` with the dense network as teacher.

    Args:
        model: the student.
        cfg: the dense classifier's.
        checkpoint: the dense network's weights.
        lesson: what the student learns.
        plans: see ``Lesson.terms``.
    """
    archs = [resolve_arch(m.backbone.arch) for m in (model, cfg.model)]
    dense = {key: copy.deepcopy(cfg.model[key]) for key in ('backbone', 'neck', 'head') if key in cfg.model}
    dense['backbone'].pop('init_cfg', None)
    distill = lesson.terms(*archs, plans)
    return ConfigDict(model, type=STUDENT, teacher=dict(dense, checkpoint=str(checkpoint)), distill=distill)


def training(cfg: Config, model: ConfigDict, epochs: int, seed: int, lr: float) -> Config:
    """A whole config: a model with the dense config's data, schedule and settings, evaluated after every epoch.

    Args:
        cfg: the dense classifier's.
        model: the model to train.
        epochs: number of epochs.
        seed: of initial weights, order and augmentation.
        lr: highest learning rate.
    """
    run = copy.deepcopy(cfg)
    run.model = model
    if 'arch' in run:
        run.arch = copy.deepcopy(model.backbone.arch)
    set_epochs(run, epochs)
    run.train_cfg.val_interval = 1
    run.optim_wrapper.optimizer.lr = lr
    return repeatable(run, seed)


def set_epochs(run: Config, epochs: int) -> None:
    """Set the number of epochs; milestones and ends of schedules by epochs are scaled."""
    before = run.train_cfg.get('max_epochs', epochs)
    run.train_cfg.max_epochs = epochs
    if epochs == before:
        return
    schedulers = run.get('param_scheduler') or []
    for scheduler in [schedulers] if isinstance(schedulers, Mapping) else schedulers:
        if scheduler.get('by_epoch', True):
            _stretch(scheduler, epochs / before)


def _stretch(scheduler: dict[str, Any], ratio: float) -> None:
    for key in ('begin', 'end', 'T_max', 'step_size'):
        if scheduler.get(key):
            scheduler[key] = max(round(scheduler[key] * ratio), 1)
    if 'milestones' in scheduler:
        scheduler.milestones = [max(round(epoch * ratio), 1) for epoch in scheduler.milestones]


def repeatable(run: Config, seed: int) -> Config:
    """Prepare a whole config for ``Training``: an interrupted and resumed run gives the same result, because each epoch
    is seeded.

    Args:
        run: of mmdet or mmpretrain, trained by epochs; changed in place and returned.
        seed: of initial weights, order and augmentation.
    """
    run.randomness = dict(run.get('randomness') or {}, seed=seed)
    hooks = list(run.get('custom_hooks') or [])
    missing = [kind for kind in HOOKS if not any(is_type(h['type'], kind, registry=OUR_HOOKS) for h in hooks)]
    run.custom_hooks = hooks + [dict(type=kind) for kind in missing]
    run.train_dataloader.persistent_workers = False  # for SeedEveryEpoch
    # the previous one stays while the last is being written
    checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
    run.default_hooks = dict(run.get('default_hooks') or {}, checkpoint=checkpoint)
    run.launcher, run.load_from, run.resume = 'none', None, True
    for key in ('work_dir', 'prune'):  # work dir and pruning settings are not part of a training
        run.pop(key, None)
    return run
