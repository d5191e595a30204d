"""The table of epochs in a log."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.evaluation import Accuracy

from upvit_mm import hooks
from upvit_mm.hooks import epoch_table
from upvit_mm.hooks.epoch_table import table_text
from upvit_mm.runner import build_runner

ITERS = 6  # of an epoch
DEMO = Path(__file__).parents[2] / 'configs/demo/up-pvtv2-micro_digits.py'


@pytest.fixture
def config(digits_training):
    """``config(folder, **changes)``: a training of two epochs with a validation after each."""

    def make(folder: str, **changes) -> Config:
        cfg, whole = digits_training(folder), Config.fromfile(DEMO)
        cfg.update(val_cfg=dict(), val_evaluator=whole.val_evaluator, val_dataloader=whole.val_dataloader)
        cfg.val_dataloader.dataset.data_root = cfg.train_dataloader.dataset.data_root
        cfg.val_dataloader.dataset.indices = list(range(0, 500, 50))
        cfg.val_dataloader.update(num_workers=0, persistent_workers=False)
        cfg.train_cfg.val_interval = 1
        cfg.log_level = 'INFO'
        cfg.merge_from_dict(changes)
        return cfg

    return make


@pytest.fixture
def clock(monkeypatch):
    """Time goes on by 30 seconds with every look at the clock."""
    times = iter(range(0, 10_000, 30))
    monkeypatch.setattr(epoch_table, 'now', lambda: next(times))


def trained(cfg: Config, heard) -> tuple[Runner, list[str]]:
    """The runner after its training, and the tables in its log."""
    runner = build_runner(cfg, ('train', 'val'))
    log = heard(runner)
    runner.train()
    return runner, [text for text in map(str, log.messages) if text.startswith('epochs 1 to')]


def numbers(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()[2:]]


def test_a_table_after_each_validation(config, heard, clock):
    runner, tables = trained(config('run'), heard)
    assert [table.splitlines()[0] for table in tables] == ['epochs 1 to 1 of 2', 'epochs 1 to 2 of 2']
    assert tables[1].splitlines()[1].split() == ['epoch', 'train', 'loss', 'lr', 'top-1', '%', 'minutes']
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    means = [losses[:ITERS].mean(), losses[ITERS:].mean()]
    rates = runner.message_hub.get_scalar('train/lr').data[0][[ITERS - 1, -1]]
    rows = numbers(tables[1])
    assert [row[0] for row in rows] == ['1', '2']
    assert [row[1] for row in rows] == [f'{mean:.4f}' for mean in means]
    assert [row[2] for row in rows] == [f'{rate:.2e}' for rate in rates]
    top1 = runner.message_hub.get_scalar('val/accuracy/top1').data[0]
    assert [row[3] for row in rows] == [f'{value:.2f}' for value in top1]
    assert [row[4] for row in rows] == ['1.0', '1.0']  # half a minute of training and of validation
    assert sum(row[-1] == 'best' for row in rows) == 1
    assert numbers(tables[0])[0][:5] == rows[0][:5]


def test_a_resumed_training_shows_its_earlier_epochs(config, heard, clock):
    changes = {'train_cfg.max_epochs': 1, 'param_scheduler': []}
    _, (first,) = trained(config('run', **changes), heard)
    changes |= {'train_cfg.max_epochs': 3, 'resume': True, 'experiment_name': 'again'}
    _, tables = trained(config('run', **changes), heard)
    assert [table.splitlines()[0] for table in tables] == [f'epochs 1 to {n} of 3' for n in (1, 2, 3)]
    assert numbers(tables[0]) == numbers(first)  # JudgeResumed validates again what the checkpoint came before
    assert numbers(tables[2])[0][:5] == numbers(first)[0][:5]
    assert [row[0] for row in numbers(tables[2])] == ['1', '2', '3']


def test_epochs_without_a_validation(config, heard):
    _, (table,) = trained(config('run', **{'train_cfg.val_interval': 2}), heard)
    assert [row[3] == '-' for row in numbers(table)] == [True, False]
    nothing = config('none')
    nothing.val_dataloader = nothing.val_cfg = nothing.val_evaluator = None
    _, (table,) = trained(nothing, heard)
    assert table.splitlines()[1].split() == ['epoch', 'train', 'loss', 'lr', 'minutes']
    assert len(numbers(table)) == 2


def test_metrics_print_nothing(config, heard, monkeypatch, capsys):
    monkeypatch.setattr(Accuracy, 'evaluate', lambda self, size: print('DONE (t=0.17s).') or {'accuracy/top1': 50.0})
    _, tables = trained(config('run'), heard)
    assert 'DONE' not in capsys.readouterr().out
    assert numbers(tables[-1])[0][3] == '50.00'


def test_only_the_first_process_writes(config, heard, monkeypatch):
    monkeypatch.setattr(epoch_table, 'is_main_process', lambda: False)
    assert trained(config('run'), heard)[1] == []


def test_a_training_by_iterations_has_no_table(config, heard):
    cfg = config('run', param_scheduler=[])
    cfg.train_cfg = dict(by_epoch=False, max_iters=2, val_interval=1)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.custom_hooks = []
    assert trained(cfg, heard)[1] == []


def row(epoch: int, **metrics: float) -> dict:
    minutes = {'train_minutes': 1.25, 'val_minutes': 0.25}
    return {'epoch': epoch, 'loss': 2 / epoch, 'lr': 1e-3, 'metrics': metrics, **minutes}


def test_what_a_table_looks_like():
    names = ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75', 'coco/segm_mAP', 'coco/segm_mAP_50')
    rows = [row(1), row(2, **dict(zip(names, (0.132, 0.29, 0.1, -1.0, 0.25))))]
    assert table_text(rows) == (
        'epoch  train loss        lr  box AP %  box AP50 %  mask AP %  mask AP50 %  minutes\n'
        '    1      2.0000  1.00e-03         -           -          -            -      1.5\n'
        '    2      1.0000  1.00e-03      13.2        29.0          -         25.0      1.5  best'
    )
    assert table_text([row(1, mine=0.25, other=3.0)]).splitlines()[0].split()[-2:] == ['mine', 'minutes']


def test_a_long_table_is_cut():
    rows = [row(n, **{'accuracy/top1': 90.0 if n == 3 else float(n)}) for n in range(1, 31)]
    lines = table_text(rows, shown=12).splitlines()[1:]
    assert [int(line.split()[0]) for line in lines] == [3, *range(19, 31)]
    assert [line.endswith('best') for line in lines] == [True, *[False] * 12]
    assert len(table_text(rows).splitlines()) == 31


def test_it_is_public():
    assert hooks.EpochTable is epoch_table.EpochTable
