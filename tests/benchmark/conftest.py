"""A small RetinaNet or Mask R-CNN on the small digits set, and backbones for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec

ROOT = Path(__file__).parents[2]
BASE = {'deit': 'up-deit-micro_sfp', 'pvtv2': 'up-pvtv2-micro_fpn'}
WIDTHS = {  # a step takes milliseconds
    'deit': dict(embed_dims=[24], depths=[1], num_heads=2, qk_dims=24, v_dims=24, qk_scales=0.3, mlp_hidden_dims=48),
    'pvtv2': dict(embed_dims=[8, 16, 20, 24], depths=[1] * 4, num_heads=[1, 1, 2, 2], qk_dims=[8, 16, 20, 24])
    | dict(v_dims=[8, 16, 20, 24], qk_scales=0.3, mlp_hidden_dims=[16, 32, 40, 48]),
}
NARROWER = {'deit': dict(embed_dims=[16]), 'pvtv2': dict(embed_dims=[8, 12, 16, 16])}


@pytest.fixture
def detector_config(digits_folder, scope, monkeypatch) -> Callable[..., Config]:
    """``detector_config(family, kind='retinanet')``: the demo's, at 64 px, one epoch; it is written as it is."""
    for name in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):  # where one line of OpenMMLab or the other has it
        monkeypatch.setattr(f'{name}.FormatCode', lambda text, **style: (text, True), raising=False)
    scope('mmdet')

    def make(family: str, kind: str = 'retinanet') -> Config:
        cfg = Config.fromfile(ROOT / f'configs/demo/{kind}_{BASE[family]}_digits.py')
        for part in ('train', 'val', 'test'):
            loader = cfg[f'{part}_dataloader']
            loader.update(batch_size=4, num_workers=0, persistent_workers=False)
            loader.dataset.data_root = str(digits_folder)
            for step in loader.dataset.pipeline:
                if step.type == 'Resize':
                    step.scale = (64, 64)
            if part != 'train':
                cfg[f'{part}_evaluator'].ann_file = str(digits_folder / 'annotations/instances_val.json')
        cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg).score_thr = 0.0  # a net hardly trained detects something too
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
        cfg.launcher = 'none'
        return cfg

    return make


@pytest.fixture
def archs(tmp_path) -> Callable[[str], tuple[Path, Path]]:
    """``archs(family)``: the files of a small architecture and of a narrower one."""

    def make(family: str) -> tuple[Path, Path]:
        base = ArchSpec.from_json(ROOT / f'configs/_base_/archs/{family}-micro.json')
        wide = base.with_widths({**WIDTHS[family], 'name': 'wide'})
        narrow = wide.with_widths({**NARROWER[family], 'name': 'narrow'})
        return wide.save_json(tmp_path / 'wide.json'), narrow.save_json(tmp_path / 'narrow.json')

    return make


@pytest.fixture
def save_backbone(build, tmp_path) -> Callable[..., Path]:
    """``save_backbone(family, arch, seed=0)``: the checkpoint of a random backbone of that ``arch.json``."""

    def save(family: str, arch: Path, seed: int = 0) -> Path:
        path = tmp_path / f'{arch.stem}.pth'
        torch.save({'state_dict': build(family, str(arch), seed).state_dict()}, path)
        return path

    return save
