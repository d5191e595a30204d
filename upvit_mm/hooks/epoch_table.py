"""A table of the epochs of a training, for people."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console
from rich.table import Table

from upvit_mm.quiet_log import leave_out_prints
from upvit_mm.registry import HOOKS
from upvit_mm.stopwatch import now

ROWS = 'epoch_table'  # in the message hub, which checkpoints hold
SHOWN = 12  # epochs of a table, until the training ends


class Column(NamedTuple):
    """A metric in the table: its title, the factor to its unit, and digits after the point."""

    title: str
    scale: float = 1
    digits: int = 4


COLUMNS = {
    'coco/bbox_mAP': Column('box AP %', 100, 1),
    'coco/bbox_mAP_50': Column('box AP50 %', 100, 1),
    'coco/segm_mAP': Column('mask AP %', 100, 1),
    'coco/segm_mAP_50': Column('mask AP50 %', 100, 1),
    'pascal_voc/AP50': Column('box AP50 %', 100, 1),
    'accuracy/top1': Column('top-1 %', 1, 2),
}


@HOOKS.register_module()
class EpochTable(Hook):
    """Log the epochs so far after each validation, and at the end: mean training loss, learning rate, metrics, minutes.

    The learning rate is the base one in the last step; minutes are those of training and validation. The rows go into
    checkpoints, so that a resumed training shows its earlier epochs. In a distributed job the loss is that of the first
    process, which writes the table. A training that counts iterations has no table. What metrics print is left out.
    """

    priority = 'LOW'  # after mmengine's own line of the validation, and before CheckpointHook

    def before_train(self, runner: Runner) -> None:
        known = runner.message_hub.get_info(ROWS, [])
        self.rows: list[dict[str, Any]] = [row for row in known if row['epoch'] <= runner.epoch]
        self.is_told = True
        if evaluator := getattr(runner.val_loop, 'evaluator', None):
            leave_out_prints(evaluator)  # the table is in the place of theirs

    def before_train_epoch(self, runner: Runner) -> None:
        self.started = now()

    def after_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        scalars = runner.message_hub.log_scalars
        rate = scalars.get('train/base_lr', scalars.get('train/lr'))
        loss = scalars.get('train/loss')
        self.rows.append(
            {
                'epoch': runner.epoch + 1,
                'loss': None if loss is None else float(loss.mean(len(runner.train_dataloader))),
                'lr': None if rate is None else float(rate.current()),
                'train_minutes': (now() - self.started) / 60,
                'val_minutes': 0.0,
                'metrics': {},
            }
        )
        runner.message_hub.update_info(ROWS, self.rows)
        self.is_told = False

    def before_val(self, runner: Runner) -> None:
        self.val_started = now()

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        if not self.rows or self.rows[-1]['epoch'] != runner.epoch:  # of a version without this table
            return
        numbers = {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, (int, float))}
        times = ('time', 'data_time')  # mmengine's, of a step
        found = {name: value for name, value in numbers.items() if name not in times}
        self.rows[-1].update(metrics=found, val_minutes=(now() - self.val_started) / 60)
        self._tell(runner)

    def after_train(self, runner: Runner) -> None:
        if not self.is_told:  # its last epoch was not validated
            self._tell(runner)

    def _tell(self, runner: Runner) -> None:
        self.is_told = True
        if is_main_process():
            total = runner.max_epochs
            text = table_text(self.rows, None if runner.epoch == total else SHOWN)
            runner.logger.info('epochs 1 to %d of %d\n%s', runner.epoch, total, text)


def table_text(rows: Sequence[Mapping[str, Any]], shown: int | None = None) -> str:
    """Aligned lines: a header, and a line for each epoch; the best by the first metric is marked.

    Args:
        rows: epochs with ``epoch``, ``loss``, ``lr``, ``train_minutes``, ``val_minutes`` and ``metrics``.
        shown: only so many of the last epochs, and the best one; None = all.
    """
    columns = _columns(rows)
    first = next(iter(columns), None)
    judged = [row for row in rows if first in row['metrics']]
    best = max(judged, key=lambda row: row['metrics'][first], default=None)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style='')
    for title in ('epoch', 'train loss', 'lr', *(column.title for column in columns.values()), 'minutes', ''):
        table.add_column(title, justify='right', no_wrap=True)
    recent = rows if shown is None else rows[-shown:]
    for row in rows:
        if row is best or row in recent:
            table.add_row(*_cells(row, columns), 'best' if row is best else '')
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(table)
    return '\n'.join(line.rstrip() for line in out.getvalue().splitlines())


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """Columns of the metrics that are known, else of the first one."""
    found = dict.fromkeys(name for row in rows for name in row['metrics'])
    known = {name: column for name, column in COLUMNS.items() if name in found}
    return known or {name: Column(name) for name in list(found)[:1]}


def _cells(row: Mapping[str, Any], columns: Mapping[str, Column]) -> list[str]:
    loss, rate = row['loss'], row['lr']
    cells = [str(row['epoch']), '-' if loss is None else f'{loss:.4f}', '-' if rate is None else f'{rate:.2e}']
    for name, column in columns.items():
        value = row['metrics'].get(name, -1.0)  # mmdet's AP is -1 without objects
        cells.append('-' if value < 0 else f'{column.scale * value:.{column.digits}f}')
    return [*cells, f'{row["train_minutes"] + row["val_minutes"]:.1f}']
