"""The watch on tokens in a short training of a tiny classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from upvit_mm.hooks import TokenConsistencyHook, token_consistency

ROOT = Path(__file__).parents[2]
CONFIGS = {'deit': 'configs/demo/up-deit-micro_digits.py', 'pvtv2': 'configs/demo/up-pvtv2-micro_digits.py'}
LABELS = {'deit': ['block1', 'block2', 'block3', 'block4'], 'pvtv2': ['stage0', 'stage1', 'stage2', 'stage3']}


@pytest.fixture
def files(family, build, tmp_path) -> dict[str, str]:
    """``arch.json`` and weights of a tiny dense backbone."""
    backbone = build(family)
    torch.save(backbone.state_dict(), tmp_path / 'dense.pth')
    return {'arch': str(backbone.arch.save_json(tmp_path / 'arch.json')), 'checkpoint': str(tmp_path / 'dense.pth')}


@pytest.fixture
def cfg(family, files, digits_folder, tiny_arch, scope, monkeypatch) -> Config:
    """Two epochs of two steps that start from the dense weights, with the hook and TensorBoard."""
    monkeypatch.setattr(Config, 'pretty_text', property(repr))  # mmengine formats a config in seconds, many times
    cfg = Config.fromfile(ROOT / CONFIGS[family])
    scope('mmpretrain')
    cfg.model.backbone.arch = tiny_arch(family)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=files['checkpoint'])
    cfg.model.head.in_channels = tiny_arch(family)['embed_dims'][-1]
    for part in ('train', 'val', 'test'):
        loader = cfg[f'{part}_dataloader']
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(digits_folder / 'classification'), indices=16)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=10)
    cfg.param_scheduler = None
    cfg.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.5))
    cfg.default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=10))
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    cfg.custom_hooks = [dict(type='upvit_mm.TokenConsistencyHook', num_images=4, **files)]
    cfg.log_level = 'INFO'
    return cfg


def train(cfg: Config, folder: Path) -> Runner:
    cfg.work_dir, cfg.experiment_name = str(folder), f'{folder.parent.name}_{folder.name}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def logged(folder: Path) -> list[dict]:
    """Lines with the hook's values, of the JSON log that the losses go to."""
    (log,) = (path for path in folder.glob('*/vis_data/*.json') if path.name[0].isdigit())
    return [line for line in map(json.loads, log.read_text().splitlines()) if any('consistency/' in k for k in line)]


def test_two_epochs(cfg, family, tmp_path):
    runner = train(cfg, tmp_path / 'run')
    lines = logged(tmp_path / 'run')
    assert [line['step'] for line in lines] == [0, 1, 2]
    measures = (
        'cka',
        'cka_within',
        'relation',
        'neighbours',
        'procrustes',
    )  # those that need no second half of pictures
    names = {f'consistency/{label}_{name}' for label in LABELS[family] for name in measures}
    assert set(lines[0]) == names | {'step'}
    first, last = (f'consistency/{LABELS[family][k]}_cka' for k in (0, -1))
    assert lines[0][first] == pytest.approx(1)  # the dense weights themselves
    assert lines[0][last] == pytest.approx(1)
    assert lines[2][last] < 0.999
    assert runner.message_hub.get_scalar(last).current() == pytest.approx(lines[2][last])

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / 'run').glob('*/vis_data/events*')
    board = EventAccumulator(str(events)).Reload()
    assert [event.step for event in board.Scalars(last)] == [0, 1, 2]


def test_the_training_is_the_same_without_it(cfg, tmp_path, identical):
    with_hook = train(cfg, tmp_path / 'with').model.state_dict()
    cfg.custom_hooks = []
    assert identical(with_hook, train(cfg, tmp_path / 'without').model.state_dict())


@pytest.mark.parametrize('family', ['pvtv2'])
def test_interval_counts_epochs_or_iterations_and_the_last_is_measured(cfg, files, tmp_path):
    cfg.custom_hooks[0].interval = 2
    cfg.train_cfg.max_epochs = 3
    train(cfg, tmp_path / 'epochs')
    assert [line['step'] for line in logged(tmp_path / 'epochs')] == [0, 2, 3]
    cfg.train_cfg = dict(by_epoch=False, max_iters=5, val_interval=100)
    cfg.custom_hooks[0].update(by_epoch=False)
    train(cfg, tmp_path / 'iterations')
    assert [line['step'] for line in logged(tmp_path / 'iterations')] == [0, 2, 4, 5]
    cfg.custom_hooks[0].update(by_epoch=True)
    with pytest.raises(ValueError, match='by_epoch=False'):
        train(cfg, tmp_path / 'mixed')


@pytest.mark.parametrize('family', ['pvtv2'])
def test_only_the_first_process_measures(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(token_consistency, 'is_main_process', lambda: False)
    train(cfg, tmp_path / 'run')
    assert not logged(tmp_path / 'run')


@pytest.mark.parametrize('family', ['pvtv2'])
def test_mistakes(cfg, files, tmp_path, build, tiny_arch):
    with pytest.raises(ValueError, match='interval = 0'):
        TokenConsistencyHook(**files, interval=0)
    cfg.custom_hooks[0].checkpoint = 'no.pth'
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'no.pth' does not exist"):
        train(cfg, tmp_path / 'a')
    cfg.custom_hooks[0].update(checkpoint=files['checkpoint'], arch=build('deit').arch.to_dict())
    with pytest.raises(ValueError, match='only networks of equal stages and strides'):
        train(cfg, tmp_path / 'b')
    cfg.custom_hooks[0].arch = tiny_arch('pvtv2', embed_dims=[16, 24, 35, 48])
    with pytest.raises(ValueError, match='checkpoint does not fit UPPVTv2'):
        train(cfg, tmp_path / 'c')
    cfg.custom_hooks[0].arch = files['arch']
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    with pytest.raises(ValueError, match='set val_dataloader in the config'):
        train(cfg, tmp_path / 'd')


def test_a_model_without_our_backbone():
    class Stand(nn.Module):
        backbone = nn.Identity()

    class StandRunner:
        model = Stand()

    with pytest.raises(
        ValueError, match=r'is Identity: .* compares upvit_mm.UPDeiT, upvit_mm.UPViT, upvit_mm.UPPVTv2 only'
    ):
        token_consistency._backbone(StandRunner())
