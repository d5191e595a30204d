"""From command line to Runner, without running."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from upvit_mm import runner
from upvit_mm.arguments import add_run_arguments
from upvit_mm.cli import one_line_errors
from upvit_mm.runner import build_runner, load_config, set_training_options

CONFIGS = Path(__file__).parents[1] / 'configs'
DEMO = str(CONFIGS / 'demo/retinanet_up-pvtv2-micro_fpn_digits.py')


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_run_arguments(parser)
    return parser.parse_args(words)


def test_work_dir_and_options():
    assert load_config(parse(DEMO)).work_dir == 'work_dirs/retinanet_up-pvtv2-micro_fpn_digits'
    cfg = load_config(parse(DEMO, '--work-dir', 'here', '--cfg-options', 'optim_wrapper.optimizer.lr=0.5'))
    assert cfg.work_dir == 'here'
    assert cfg.optim_wrapper.optimizer.lr == 0.5


@pytest.mark.parametrize('word', ['foo', '=3'])
def test_options_that_are_no_pairs(word, capsys):
    with pytest.raises(SystemExit) as end:
        parse(DEMO, '--cfg-options', 'a.b=1', word)
    assert end.value.code == 2
    assert f'error: --cfg-options {word!r}: must be key=value' in capsys.readouterr().err
    assert parse(DEMO, '--cfg-options', 'a.b=1', 'c=x=y').cfg_options == {'a.b': 1, 'c': 'x=y'}


def test_missing_config():
    with pytest.raises(FileNotFoundError, match=r"config 'nowhere.py' does not exist"):
        load_config(parse('nowhere.py'))


def test_our_errors_are_one_line(capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        load_config(parse('nowhere.py'))
    assert str(end.value).startswith("error: config 'nowhere.py' does not exist")


def test_foreign_errors_keep_their_traceback():
    with pytest.raises(ValueError, match='invalid literal'), one_line_errors():
        int('x')


def test_training_flags(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg = load_config(parse(str(CONFIGS / 'detection/retinanet_up-pvtv2-b0_fpn_1x_coco.py')))
    cfg.work_dir = str(tmp_path)
    set_training_options(cfg, amp=True, auto_scale_lr=True, resume=None)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    set_training_options(cfg, amp=False, auto_scale_lr=False, resume='epoch_3.pth')
    assert (cfg.resume, cfg.load_from) == (True, 'epoch_3.pth')


def test_resume_without_a_checkpoint_starts_from_load_from(tmp_path):
    cfg = load_config(parse(DEMO, '--work-dir', str(tmp_path), '--cfg-options', 'load_from=pruned.pth'))
    set_training_options(cfg, amp=False, auto_scale_lr=False, resume='auto')
    assert (cfg.resume, cfg.load_from) == (False, 'pruned.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    set_training_options(cfg, amp=False, auto_scale_lr=False, resume='auto')
    assert (cfg.resume, cfg.load_from) == (True, None)


def test_training_flags_that_cannot_be_met(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = load_config(parse(DEMO))
    with pytest.raises(ValueError, match='--amp: mixed-precision training needs a GPU'):
        set_training_options(cfg, amp=True, auto_scale_lr=False, resume=None)
    with pytest.raises(ValueError, match=r'the config has no auto_scale_lr.base_batch_size'):
        set_training_options(cfg, amp=False, auto_scale_lr=True, resume=None)


def test_a_runner_that_loads_by_a_strategy_says_so(monkeypatch):
    said = []
    other = SimpleNamespace(logger=SimpleNamespace(warning=lambda text, *values: said.append(text % values)))
    monkeypatch.setattr(runner, 'check_datasets', lambda cfg, parts: None)
    monkeypatch.setattr(runner.RUNNERS, 'build', lambda cfg: other)
    cfg = Config(dict(runner_type='FlexibleRunner', launcher='none', load_from='x.pth'))
    assert build_runner(cfg, ('test',)) is other
    assert said == ["runner_type = 'FlexibleRunner': tensors that do not load are only logged."]
    cfg.load_from = None
    build_runner(cfg, ('test',))
    assert len(said) == 1


def test_data_are_checked_once_on_each_machine(monkeypatch):
    """By its first process; what is refused there ends all processes, and one of them says it."""
    called, found = [], []
    monkeypatch.setattr(runner, 'check_datasets', lambda cfg, parts: called.append(parts))
    monkeypatch.setattr(runner, 'all_gather_object', lambda mine: [mine, *found])
    for local_rank in ('0', '1'):
        monkeypatch.setenv('LOCAL_RANK', local_rank)
        runner.check_data({}, ('train',))
    assert called == [('train',)]
    found.append(ValueError('of another machine'))
    with pytest.raises(ValueError, match='of another machine'):
        runner.check_data({}, ('train',))
    monkeypatch.setattr(runner, 'is_main_process', lambda: False)
    with pytest.raises(SystemExit) as info:
        runner.check_data({}, ('train',))
    assert info.value.code == 1


def test_backbones_of_ours_decay_as_they_should(digits_folder, tmp_path):
    """With a config that names neither a constructor nor keys; the rest of the detector decays as it says."""
    cfg = load_config(parse(DEMO, '--work-dir', str(tmp_path)))
    cfg.train_dataloader.dataset.data_root = str(digits_folder)
    cfg.optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    built = build_runner(cfg, ('train',))
    decayed, free = built.optim_wrapper.optimizer.param_groups
    names = {id(p): name for name, p in built.model.named_parameters()}
    spared = {names[id(p)] for p in free['params']}
    assert (decayed['weight_decay'], free['weight_decay']) == (0.05, 0.0)
    assert len(decayed['params']) + len(free['params']) == len(names)
    backbone = {name: p for name, p in built.model.named_parameters() if name.startswith('backbone.')}
    assert spared == {name for name, p in backbone.items() if p.ndim < 2}  # a PVTv2 has no tokens and positions
    assert built.build_optim_wrapper(built.optim_wrapper) is built.optim_wrapper  # what train() does


def test_settings_of_an_inherited_backbone(tmp_path):
    """As when ``_delete_=True`` is forgotten over a config with a ResNet."""
    path = tmp_path / 'own.py'
    path.write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
        "model = dict(backbone=dict(type='upvit_mm.UPPVTv2', arch='pvtv2-b0'))\n"
    )
    with pytest.raises(ValueError, match=r'model.backbone has') as info:
        build_runner(load_config(parse(str(path))), ('train',))
    assert str(info.value) == (
        'model.backbone has depth, num_stages, norm_cfg, style, which UPPVTv2 does not know (it knows arch, '
        'out_indices, drop_path_rate, frozen_stages, with_cp, norm_eval, init_cfg). If they come from an inherited '
        "config, write backbone=dict(_delete_=True, type='upvit_mm.UPPVTv2', ...): without _delete_ its settings stay."
    )


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == '\ninterrupted\n'
