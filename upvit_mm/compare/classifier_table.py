"""Results of a comparison of classifiers: top-1 of every way to train, its difference to vanilla, and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upvit_mm.compare.cells import Count, Difference, Figure
from upvit_mm.compare.json_record import JsonRecord
from upvit_mm.table import Table

REFERENCE = 'vanilla'  # key of the row to compare with
ONE_SHOT = {'sliced.pth': 'sliced', 'pruned.pth': 'compensated'}  # file of the pruning job -> name of its evaluation
HEADER = (
    'network',
    'epochs',
    'lr',
    'top-1 % (mean ± std)',
    'over vanilla',
    "epochs to vanilla's final",
    'one-shot top-1 %',
    'ms/step',
    'MACs',
    'params',
)


@dataclass(frozen=True)
class ClassifierRow(JsonRecord):
    """One way to train the pruned architecture.

    Attributes:
        key: name of its folder.
        title: its name in tables.
        start: the pruning job's file to start from; None = from scratch.
        epochs: epochs of its training.
        top1: in %, by seed.
        mean, std: mean and standard deviation of these; ``std`` None = one seed.
        over_vanilla, interval, established: of the paired difference to vanilla; None = vanilla was not trained.
        epochs_to_vanilla: epochs after which its mean reaches vanilla's final mean; None = never.
        seconds_per_step: median of a training step; None = unknown.
        curve: mean top-1 by epoch.
        curves: top-1 by epoch of every seed.
    """

    key: str
    title: str
    start: str | None
    epochs: int
    top1: Mapping[str, float]
    mean: float
    std: float | None
    over_vanilla: float | None
    interval: Sequence[float] | None
    established: bool | None
    epochs_to_vanilla: int | None
    seconds_per_step: float | None
    curve: Sequence[float]
    curves: Sequence[Sequence[float]]

    @property
    def accuracy(self) -> Figure:
        """Top-1 in %."""
        return Figure(self.mean, self.std, 2)

    @property
    def over(self) -> Difference | None:
        """Difference to vanilla; None for vanilla itself, or without vanilla."""
        if self.key == REFERENCE or self.over_vanilla is None:
            return None
        return Difference(self.over_vanilla, self.interval, self.established, 2)

    @property
    def reached(self) -> str:
        """Number of epochs after which it is as good as vanilla."""
        return 'not reached' if self.epochs_to_vanilla is None else str(self.epochs_to_vanilla)


@dataclass(frozen=True)
class ClassifierTable(JsonRecord):
    """One comparison of classifiers; the content of ``compare.json``.

    Attributes:
        rows: a ``ClassifierRow`` for each way to train.
        goal: goal of the pruning, as text.
        options: options of the comparison.
        checkpoint, sha256: file of the dense network.
        dense: its ``top1`` in %, ``macs`` and ``params``.
        one_shot: results before any training, by name of ``ONE_SHOT``.
        target: ``macs`` and ``params`` of the pruned architecture.
        step_times: result of ``step_times``.
        command: the command line of the tool.
        size: height and width in pixels at which multiply-accumulates are counted; None = an older version did not say.
        folder: the folder that it was read from.
    """

    rows: Sequence[ClassifierRow]
    goal: str
    options: Mapping[str, Any]
    checkpoint: str
    sha256: str
    dense: Mapping[str, Any]
    one_shot: Mapping[str, Mapping[str, float]]
    target: Mapping[str, int]
    step_times: Mapping[str, float]
    command: str | None = None
    size: Sequence[int] | None = None
    folder: Path | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> ClassifierTable:
        return super().of({**content, 'rows': tuple(map(ClassifierRow.of, content['rows']))})

    def costs(self, counts: Mapping[str, int]) -> list[Count]:
        """MACs and parameters, with their share of the dense network's."""
        shares = {name: 100 * counts[name] / self.dense[name] for name in ('macs', 'params')}
        return [Count(counts['macs'], 'M', 1, shares['macs']), Count(counts['params'], share=shares['params'])]

    def where(self) -> str:
        """At which size costs are counted, to follow "MACs"; nothing if that is not known."""
        return '' if self.size is None else f' at {"x".join(map(str, self.size))}'

    def before_training(self, start: str | None, digits: int = 2) -> Figure | None:
        """Top-1 in % of a file of the pruning job; None if it was not evaluated."""
        top1 = (self.one_shot.get(ONE_SHOT.get(start)) or {}).get('top1')
        return None if top1 is None else Figure(top1, digits=digits)

    def table(self) -> Table:
        """The dense network, and every row."""
        epochs, top1 = self.options['dense_epochs'], Figure(self.dense['top1'], digits=2)
        rows = [['dense', epochs or None, None, top1, *[None] * 4, *self.costs(self.dense)]]
        for row in self.rows:
            seconds = row.seconds_per_step
            rows.append(
                [
                    row.title,
                    row.epochs,
                    f'{self._lr(row):g}',
                    row.accuracy,
                    row.over,
                    row.reached,
                    self.before_training(row.start),
                    None if seconds is None else f'{1000 * seconds:.0f}',
                    *self.costs(self.target),
                ]
            )
        return Table(HEADER, rows)

    def sheet(self) -> Table:
        """All numbers with all digits, and the accuracy of every seed."""
        seeds = list(map(str, self.options['seeds']))
        over = ('over_vanilla', 'over_vanilla_low', 'over_vanilla_high', 'established')
        figures = ('mean', 'std', *over, 'epochs_to_vanilla', 'seconds_per_step')
        header = ['key', 'title', 'epochs', 'lr', *(f'top1_seed{seed}' for seed in seeds), *figures, 'macs', 'params']
        unknown = [None] * (len(seeds) + 1)
        rows = [['dense', 'dense', self.options['dense_epochs'], *unknown, self.dense['top1'], *[None] * 7]]
        for row in self.rows:
            top1, ends = [row.top1[seed] for seed in seeds], row.interval or (None, None)
            cells = [row.key, row.title, row.epochs, self._lr(row), *top1, row.mean, row.std, row.over_vanilla, *ends]
            rows.append([*cells, row.established, row.epochs_to_vanilla, row.seconds_per_step])
        counts = [self.dense, *[self.target] * len(self.rows)]
        return Table(header, [[*row, c['macs'], c['params']] for row, c in zip(rows, counts)])

    def _lr(self, row: ClassifierRow) -> float:
        return self.options['finetune_lr' if row.start else 'lr']
