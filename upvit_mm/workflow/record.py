"""The metric of a training, and the record of its epochs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from upvit_mm.files import write_text_atomically
from upvit_mm.hooks.judge_resumed import is_judged
from upvit_mm.stopwatch import now

Say = Callable[[str], object]  # called with each line of progress


@dataclass(frozen=True)
class Metric:
    """The metric of a training.

    Attributes:
        key: its name in the evaluator.
        text: its format for people.
        empty: its value when the evaluator leaves it out; None = that is an error.
    """

    key: str
    text: str
    empty: float | None = None

    @property
    def name(self) -> str:
        """Its name in the record."""
        return self.key.rpartition('/')[2]

    @classmethod
    def of(cls, cfg: Config) -> Metric:
        """The config's ``judged_by``; the default is a classifier's metric."""
        return METRICS[cfg.get('judged_by', TOP1.key)]

    def read(self, metrics: Mapping[str, float]) -> float:
        """Its value.

        Raises:
            ValueError: the evaluator does not give it.
        """
        value = metrics.get(self.key, self.empty)
        if value is None:
            raise ValueError(f"val_evaluator gives {', '.join(metrics)}: it must give {self.key}; use type='Accuracy'.")
        return float(value)


TOP1 = Metric('accuracy/top1', 'top-1 {:.2f} %')
BOX_AP = Metric('coco/bbox_mAP', 'box AP {:.3f}', empty=0.0)  # CocoMetric gives nothing without detections
METRICS = {metric.key: metric for metric in (TOP1, BOX_AP)}


class RecordHook(Hook):
    """Write ``record.json`` of a run: its metric after each evaluated epoch, the time of a step without data loading,
    and the number of training pictures.

    Args:
        metric: the metric.
        say: called with its values, and with epochs that are not evaluated.
    """

    priority = 'VERY_HIGH'

    def __init__(self, metric: Metric = TOP1, say: Say | None = None):
        self.metric, self.say = metric, say

    def before_train(self, runner: Runner) -> None:
        self.seconds: list[float] = []
        self.pictures = len(innermost(runner.train_dataloader.dataset))
        known = read_record(Path(runner.work_dir), runner.epoch, self.metric)
        self.values, self.earlier = known[self.metric.name], known['seconds_per_step']

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self.started = now()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.seconds.append(now() - self.started)

    def after_train_epoch(self, runner: Runner) -> None:
        if self.say and not is_judged(runner, extra=1):
            self.say(f'  epoch {runner.epoch + 1}/{runner.max_epochs}')

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        earlier = self.values[: runner.epoch - 1]
        unjudged = [None] * (runner.epoch - 1 - len(earlier))
        self.values = [*earlier, *unjudged, self.metric.read(metrics)]
        seconds = statistics.median(self.seconds) if self.seconds else self.earlier
        if is_main_process():
            record = {self.metric.name: self.values, 'seconds_per_step': seconds, 'pictures': self.pictures}
            text = json.dumps(record)
            write_text_atomically(Path(runner.work_dir, 'record.json'), text + '\n')
        if self.say:
            self.say(f'  epoch {runner.epoch}/{runner.max_epochs}: {self.metric.text.format(self.values[-1])}')


def read_record(folder: Path, epochs: int, metric: Metric) -> dict[str, Any]:
    """See ``Training.record``; None for each epoch without a value."""
    path, record = folder / 'record.json', {}
    if path.is_file():
        record = json.loads(path.read_text(encoding='utf-8'))
    values = record.get(metric.name, [])[:epochs]
    values += [None] * (epochs - len(values))
    others = {name: record.get(name) for name in ('seconds_per_step', 'pictures')}
    return {metric.name: values, **others}


def innermost(dataset: Any) -> Any:
    """A data set without wrappers that repeat or mix its pictures."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset
