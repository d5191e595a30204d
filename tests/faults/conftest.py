"""Jobs of the tools on so little data and such small networks that they take a second, in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from fixtures import forked
from mmengine.config import Config

from upvit_mm.arch import ArchSpec

ROOT = Path(__file__).parents[2]
PARTS = ('train', 'val', 'test')
SMALL = dict(embed_dims=[8, 16, 20, 24], depths=[1] * 4, num_heads=[1, 1, 2, 2], qk_dims=[8, 16, 20, 24])
SMALL |= dict(v_dims=[8, 16, 20, 24], qk_scales=0.3, mlp_hidden_dims=[16, 32, 40, 48], name='small')
NARROW = dict(embed_dims=[8, 12, 16, 16], mlp_hidden_dims=[8, 16, 20, 24], name='narrow')


@dataclass(frozen=True)
class Job:
    """A command line that is to be run in a folder of its own, where its work dir is ``out``."""

    folder: Path
    words: tuple[str, ...]

    @property
    def out(self) -> Path:
        return self.folder / 'out'

    def start(self, before: Callable | None = None) -> BaseProcess:
        """The process, which calls ``before`` first; what it says goes to ``said`` in the folder."""
        self.folder.mkdir(exist_ok=True)
        words = [str(ROOT / 'tools' / self.words[0]), *self.words[1:], '--work-dir', 'out']
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'COLUMNS': '120'}
        return forked.start(words, self.folder, environment, self.folder / 'said', before)

    def run(self, status: int = 0, before: Callable | None = None) -> str:
        """What it says until it ends, which it must with ``status``."""
        assert forked.status_of(self.start(before)) == status, self.said[-3000:]
        return self.said

    @property
    def said(self) -> str:
        return (self.folder / 'said').read_text()


@pytest.fixture(scope='session')
def arch() -> ArchSpec:
    return ArchSpec.from_json(ROOT / 'configs/_base_/archs/pvtv2-micro.json').with_widths(SMALL)


@pytest.fixture(scope='session')
def files(arch, digits_folder, tmp_path_factory) -> Path:
    """The demo's ``detector.py`` and ``classifier.py`` made small, ``dense.pth`` of the latter, and archs."""
    folder = tmp_path_factory.mktemp('files')
    arch.save_json(folder / 'small.json')
    arch.with_widths(NARROW).save_json(folder / 'narrow.json')
    _write_detector(arch, digits_folder, folder / 'detector.py')
    _write_classifier(arch, digits_folder / 'classification', folder)
    return folder


def _write_detector(arch: ArchSpec, data: Path, path: Path) -> None:
    cfg = Config.fromfile(ROOT / 'configs/demo/retinanet_up-pvtv2-micro_fpn_digits.py')
    cfg.model.backbone.arch, cfg.model.neck.in_channels = arch.to_dict(), list(arch.embed_dims)
    cfg.model.test_cfg.score_thr = 0.0  # a net hardly trained detects something too
    for part in PARTS:
        for step in cfg[f'{part}_dataloader'].dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (64, 64)
        if part != 'train':
            cfg[f'{part}_evaluator'].ann_file = str(data / 'annotations/instances_val.json')
    _make_short(cfg, data, epochs=6)
    cfg.dump(path)


def _write_classifier(arch: ArchSpec, data: Path, folder: Path) -> None:
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    cfg = Config.fromfile(ROOT / 'configs/demo/up-pvtv2-micro_digits.py')
    cfg.model.backbone.arch, cfg.model.head.in_channels = arch.to_dict(), arch.embed_dims[-1]
    cfg.train_dataloader.dataset.indices = list(range(0, 4000, 100))
    cfg.val_dataloader.dataset.indices = cfg.test_dataloader.dataset.indices = list(range(0, 1000, 50))
    _make_short(cfg, data, epochs=6)
    cfg.dump(folder / 'classifier.py')
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    torch.nn.init.normal_(model.head.fc.weight, std=0.3)
    torch.save({'state_dict': model.state_dict()}, folder / 'dense.pth')


def _make_short(cfg: Config, data: Path, epochs: int) -> None:
    for part in PARTS:
        cfg[f'{part}_dataloader'].update(batch_size=4, num_workers=0, persistent_workers=False)
        cfg[f'{part}_dataloader'].dataset.data_root = str(data)
    cfg.train_cfg.update(max_epochs=epochs, val_interval=2)
    cfg.default_hooks.logger.interval = 1


@pytest.fixture(scope='session')
def job(files) -> Callable[..., Job]:
    """``job(kind, folder, *words)``: one of the four jobs in that folder, with more words."""
    dense, narrow = files / 'dense.pth', files / 'narrow.json'
    words = {
        'detector': ['train.py', files / 'detector.py', '--resume'],
        'classifier': ['train.py', files / 'classifier.py', '--resume'],
        'scoring': ['prune.py', files / 'classifier.py', dense, '--target', narrow, '--compensate', '--method', 'exact']
        + ['--batch-size', 1, '--per-class', 3, '--eval-images', 20, '--max-rows', 16],
        'comparison': ['compare_detectors.py', files / 'detector.py', '--backbones', f'narrow={narrow}']
        + [f'small={files / "small.json"},{dense}', '--seeds', 0, '--epochs', 3, '--repeats', 0],
    }
    return lambda kind, folder, *more: Job(folder, tuple(map(str, [*words[kind], *more])))
