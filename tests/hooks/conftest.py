"""A training of a tiny classifier on a few of the digits, with everything that draws random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]


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
