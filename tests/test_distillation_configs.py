"""The recipes that train a backbone to give the dense network's tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from upvit_mm.arch import ArchSpec, get_arch

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / 'configs/distillation').glob('up-*.py'))


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    """It starts from what the pruning config of the same name writes, and asks for no labels."""
    cfg, text = Config.fromfile(path), path.read_text()
    arch, teacher = ArchSpec.from_dict(cfg.arch), cfg.model.teacher
    assert arch == get_arch(arch.name)
    pruning = Config.fromfile(ROOT / f'configs/pruning/up-{arch.name}_from-{teacher.backbone.arch}_in1k.py')
    folder = f'work_dirs/up-{arch.name}_from-{teacher.backbone.arch}_in1k'
    assert pruning.prune.target == arch.name
    assert teacher.checkpoint in Path(pruning.filename).read_text()
    assert cfg.model.init_cfg == dict(type='Pretrained', checkpoint=f'{folder}/pruned.pth')
    assert cfg.model.distill.tokens.plan == f'{folder}/plan.json'
    assert cfg.model.head is None
    assert 'train_cfg' not in cfg.model  # no mixing of labels
    assert path.stem.endswith(f'8xb{cfg.train_dataloader.batch_size}_in1k')
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size
    assert 'We have not run it on ImageNet.' in text
    assert [cfg[key] for key in ('val_dataloader', 'val_cfg', 'val_evaluator')] == [None] * 3
