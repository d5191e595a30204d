"""A training that was cut off between saving and validating loses no validation, nor its best checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner, ValLoop

from upvit_mm.runner import build_runner

ITERS = 6  # of an epoch


@pytest.fixture(params=['epochs', 'iterations'])
def config(request, digits_training):
    """``config(folder, resume)``: a training that validates in the middle and at the end, and keeps the best."""

    def make(folder: str, resume: bool = False) -> Config:
        cfg = digits_training(folder, resume=resume)
        whole = Config.fromfile(Path(__file__).parents[2] / 'configs/demo/up-pvtv2-micro_digits.py')
        cfg.update(val_cfg=dict(), val_evaluator=whole.val_evaluator, val_dataloader=whole.val_dataloader)
        cfg.val_dataloader.dataset.data_root = cfg.train_dataloader.dataset.data_root
        cfg.val_dataloader.dataset.indices = list(range(0, 500, 50))
        cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
        cfg.train_cfg.val_interval = 1
        saving = dict(type='CheckpointHook', interval=1, save_best='accuracy/top1')
        if request.param == 'iterations':
            cfg.train_cfg = dict(by_epoch=False, max_iters=2 * ITERS, val_interval=ITERS)
            cfg.param_scheduler = []
            saving.update(by_epoch=False, interval=ITERS)
            cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'upvit_mm.SeedEveryEpoch']
        cfg.default_hooks.checkpoint = saving
        return cfg

    return make


class Seen(Hook):
    """The step and metrics of each validation."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.found: list[tuple[int, dict]] = []

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self.found.append((runner.iter, dict(metrics)))


def run(cfg: Config) -> list[tuple[int, dict]]:
    runner, seen = build_runner(cfg, ('train', 'val')), Seen()
    runner.register_hook(seen)
    runner.train()
    return seen.found


@pytest.mark.parametrize('cut', [1, 2], ids=['in the middle', 'at the end'])
def test_what_was_not_judged_is_judged(config, cut, monkeypatch):
    whole, count = ValLoop.run, 0

    def stop(self: ValLoop):
        nonlocal count
        count += 1
        if count == cut:
            raise KeyboardInterrupt
        return whole(self)

    with monkeypatch.context() as patch:
        patch.setattr(ValLoop, 'run', stop)
        with pytest.raises(KeyboardInterrupt):
            run(config('run'))
    found = run(config('run', resume=True))
    assert [step for step, _ in found] == [ITERS, 2 * ITERS][cut - 1 :]
    best = [path.name for path in Path(config('run').work_dir).glob('best_*.pth')]
    assert len(best) == 1


def test_a_new_training_and_one_from_weights_judge_nothing_first(config):
    cfg = config('run')
    assert [step for step, _ in run(cfg)] == [ITERS, 2 * ITERS]
    newest = max(Path(cfg.work_dir).glob('[ei]*_*.pth'))
    again = config('again')
    again.load_from = str(newest)
    assert [step for step, _ in run(again)] == [ITERS, 2 * ITERS]
