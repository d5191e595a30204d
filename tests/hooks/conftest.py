"""A training of a tiny classifier on a few of the digits, and tiny models into which checkpoints are loaded."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

ROOT = Path(__file__).parents[2]
DETECTOR = ROOT / 'configs/demo/retinanet_up-pvtv2-micro_fpn_digits.py'
CLASSIFIERS = {f: ROOT / f'configs/demo/up-{f}-micro_digits.py' for f in ('deit', 'pvtv2')}
NUMBERS = itertools.count()


@pytest.fixture
def digits_training(digits_folder, tiny_arch, tmp_path) -> Callable[..., Config]:
    """``digits_training(folder, **changes)``: two epochs of 6 shuffled batches, cropped, mixed, with dropped paths."""

    def make(folder: str, **changes) -> Config:
        cfg = Config.fromfile(ROOT / 'configs/demo/up-pvtv2-micro_digits.py')
        arch = tiny_arch('pvtv2')
        cfg.model.update(train_cfg=dict(augments=dict(type='CutMix', alpha=0.5)))
        cfg.model.backbone.update(arch=arch, drop_path_rate=0.2)
        cfg.model.head.update(in_channels=arch['embed_dims'][-1])
        cfg.model.head.loss = dict(type='CrossEntropyLoss', use_soft=True)
        cfg.train_dataloader.update(batch_size=8, num_workers=0, persistent_workers=False)
        for part in ('train', 'val', 'test'):
            cfg[f'{part}_dataloader'].dataset.data_root = str(digits_folder / 'classification')
        cfg.train_dataloader.dataset.indices = list(range(0, 4000, 84))  # 48
        cfg.train_cfg.update(max_epochs=2)
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.default_hooks.logger.interval = 1
        cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1), dict(type='upvit_mm.SeedEveryEpoch')]
        cfg.update(work_dir=str(tmp_path / folder), launcher='none', log_level='WARNING')
        cfg.experiment_name = f'{tmp_path.name}_{folder}'
        cfg.merge_from_dict(changes)
        return cfg

    return make


@pytest.fixture
def model(scope, stock_arch, randomise):
    """``model(kind, seed=0, **changes)``: a tiny detector or a classifier of a family, random."""

    def make(kind: str, seed: int = 0, arch: dict | None = None, **changes) -> nn.Module:
        family = 'pvtv2' if kind == 'detector' else kind
        cfg = Config.fromfile(DETECTOR if kind == 'detector' else CLASSIFIERS[kind])
        scope(cfg.default_scope)
        arch = arch or stock_arch(family)
        cfg.model.backbone.arch = arch
        if kind == 'detector':
            cfg.model.neck.update(in_channels=arch['embed_dims'], out_channels=16)
            cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
        else:
            cfg.model.head.update(in_channels=arch['embed_dims'][-1])
        cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
        return randomise(MODELS.build(cfg.model), seed)

    return make


@pytest.fixture
def heard(caplog):
    """``heard(runner)``: note what its logger says until the test ends; gives it back."""
    loggers = []

    def listen(runner: Runner) -> pytest.LogCaptureFixture:
        loggers.append(runner.logger)
        runner.logger.addHandler(caplog.handler)
        caplog.clear()
        return caplog

    yield listen
    for logger in loggers:
        logger.removeHandler(caplog.handler)


@pytest.fixture
def load(tmp_path, heard):
    """``load(model, content, part='test', **settings)``: what mmengine's load_from does, and the warnings of it."""

    def run(model: nn.Module, content: dict, part: str = 'test', hooks: tuple = (), **settings) -> list[str]:
        path = tmp_path / 'x.pth'
        torch.save(content, path)
        name = f'{tmp_path.name}_{next(NUMBERS)}'
        runner = Runner(model, str(tmp_path), load_from=str(path), experiment_name=name, log_level='WARNING')
        for hook in (*hooks, dict(type='upvit_mm.CheckLoaded', part=part, **settings)):
            runner.register_hook(hook)
        runner.call_hook('before_run')
        log = heard(runner)
        runner.load_or_resume()
        return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]

    return run
