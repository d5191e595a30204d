"""A dense classifier on the small digits set, and a smaller architecture for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec

ROOT = Path(__file__).parents[2]
CONFIGS = {'deit': 'configs/demo/up-deit-micro_digits.py', 'pvtv2': 'configs/demo/up-pvtv2-micro_digits.py'}
NARROWER = {  # half the attention, 5/8 of the FFN, 3/4 of the embedding; PVTv2 also loses blocks
    'deit': dict(embed_dims=[72], qk_dims=48, v_dims=48, mlp_hidden_dims=240),
    'pvtv2': dict(
        embed_dims=[12, 24, 60, 96],
        depths=[1, 2, 1, 2],
        qk_dims=[8, 16, 40, 64],
        v_dims=[8, 16, 40, 64],
        mlp_hidden_dims=[80, 160, 200, 320],
    ),
}
SMALL = {  # one block a stage: a step takes milliseconds
    'deit': dict(embed_dims=[24], depths=[1], num_heads=2, qk_dims=24, v_dims=24, qk_scales=0.3, mlp_hidden_dims=48),
    'pvtv2': dict(embed_dims=[8, 16, 20, 24], depths=[1] * 4, num_heads=[1, 1, 2, 2], qk_dims=[8, 16, 20, 24])
    | dict(v_dims=[8, 16, 20, 24], qk_scales=0.3, mlp_hidden_dims=[16, 32, 40, 48]),
}


@pytest.fixture
def dense_config(family) -> Path:
    """The demo's config of a classifier."""
    return ROOT / CONFIGS[family]


@pytest.fixture
def cfg(family, dense_config, digits_folder) -> Config:
    """The same, on the small data set; the DeiT has two blocks, to be quick."""
    cfg = Config.fromfile(dense_config)
    if family == 'deit':
        cfg.arch = cfg.model.backbone.arch = ArchSpec.from_dict(cfg.arch).with_widths({'depths': [2]}).to_dict()
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.data_root = str(digits_folder / 'classification')
    return cfg


@pytest.fixture
def shrink(family, monkeypatch) -> Callable[[Config], Config]:
    """``shrink(cfg)``: a network and data so small that they take a second; configs are written as they are."""
    for name in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):  # where one line of OpenMMLab or the other has it
        monkeypatch.setattr(f'{name}.FormatCode', lambda text, **style: (text, True), raising=False)

    def change(cfg: Config) -> Config:
        arch = ArchSpec.from_dict(cfg.arch).with_widths(SMALL[family])
        cfg.arch = cfg.model.backbone.arch = arch.to_dict()
        cfg.model.head.in_channels = arch.embed_dims[-1]
        for part in ('train', 'val', 'test'):
            cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False, batch_size=20)
            cfg[f'{part}_dataloader'].dataset.serialize_data = False  # which collects garbage
            if part != 'train':
                cfg[f'{part}_dataloader'].dataset.indices = range(0, 1000, 20)
        return cfg

    return change


@pytest.fixture
def checkpoint(cfg, scope, tmp_path) -> str:
    """An untrained classifier of that config."""
    from mmpretrain.registry import MODELS

    scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    torch.nn.init.normal_(model.head.fc.weight, std=0.3)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'dense.pth')
    return str(tmp_path / 'dense.pth')


@pytest.fixture
def target(family, cfg) -> ArchSpec:
    return ArchSpec.from_dict(cfg.arch).with_widths({'name': 'narrow', **NARROWER[family]})


@pytest.fixture
def prune_tool(cfg, checkpoint, tmp_path) -> Callable[..., list[str]]:
    """``prune_tool(*words)``: the command of ``tools/prune.py`` on that classifier, to run in ``tmp_path``."""
    cfg.dump(tmp_path / 'dense.py')
    return lambda *words: [sys.executable, str(ROOT / 'tools/prune.py'), 'dense.py', checkpoint, *map(str, words)]


@pytest.fixture
def run(tmp_path, environment) -> Callable[..., str]:
    """``run(command, status=0)``: both streams of a command that runs in ``tmp_path``."""

    def call(command: list[str], status: int = 0) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == status, output[-3000:]
        return output

    return call


@pytest.fixture
def environment() -> dict[str, str]:
    """Of a tool's process: one thread, no GPU."""
    return os.environ | {
        'PYTHONPATH': str(ROOT),
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
        'PYTHON': sys.executable,
        'COLUMNS': '120',
    }
