"""The steps of a classifier's study: a dense classifier, and comparisons that start from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from upvit_mm.evidence.steps import Plan, Step
from upvit_mm.evidence.studies import Row

FINETUNE_LR = '5e-4'
PRUNING = ('per_class=40', 'eval_images=10000')  # at once is judged on all pictures, like the rest
KEYS = {
    'pruned': 'compensated-distilled',
    'alone': 'compensated',
    'vanilla': 'vanilla',
}  # rows of tools/compare_classifiers.py
LONG = 'vanilla-long'


def key_of(row: Row) -> str:
    """The key of a row in ``compare.json``."""
    return LONG if row.both_trainings else KEYS[row.how]


@dataclass(frozen=True)
class ClassifierPlan(Plan):
    """The plan of a study on a classifier: each comparison prunes once, and trains its rows."""

    def steps(self, rank: int) -> Iterator[Step]:
        beside = [row for row in self.study.rows if row.how in ('vanilla', 'alone') and row.rank <= rank]
        new = {row.shape_of for row in beside if row.rank == rank}
        for row in self.study.rows:
            if row.rank == rank and row.how == 'dense':
                yield self.train_step(row, self.config, (), ())
            elif row.rank == rank and row.how == 'continued':
                options = [f'load_from={self.checkpoint(self.dense)}', f'optim_wrapper.optimizer.lr={FINETUNE_LR}']
                yield self.train_step(row, self.config, options, [self.name_of('dense', 'train')])
            elif row.how == 'pruned' and (row.rank == rank or (row.rank < rank and row.name in new)):
                yield self._compare(row, [other for other in beside if other.shape_of == row.name], rank)

    def comparison(self, row: Row) -> str:
        """The name of the comparison that trains a row."""
        return row.name if row.how == 'pruned' else row.shape_of

    def training(self, row: Row) -> Path:
        """The folder of a row's training in its comparison."""
        return self.folder / self.comparison(row) / 'compared' / key_of(row) / f'seed{self.seed}'

    def _compare(self, row: Row, others: Sequence[Row], rank: int) -> Step:
        """The comparison of a pruned row and those beside it; with a higher rank, once more with new ones."""
        folder, epochs = self.folder / row.name / 'compared', self.study.epochs(row, self.scale)
        earlier = [r for r in sorted({row.rank, *(other.rank for other in others)}) if r < rank]
        needs = [self.name_of(row.name, f'compare{r}') for r in earlier[-1:]]
        if row.method == 'fisher':
            goal = ('--budget', f'macs={row.share}%@{self.size}')
        else:
            goal = ('--target', str(self.folder / row.shape_of / 'compared/pruning/arch.json'))
            needs.append(self.name_of(row.shape_of, 'compare0'))
        command = ('compare_classifiers', self.config, str(self.checkpoint(self.dense)), *goal)
        command += ('--prune-options', f'method={row.method}', f'seed={self.seed}', *PRUNING)
        command += ('--rows', key_of(row), *map(key_of, others), '--seeds', str(self.seed), '--epochs', str(epochs))
        command += ('--dense-epochs', str(self.study.dense_epochs[self.scale]), '--finetune-lr', FINETUNE_LR)
        return Step(
            self.name_of(row.name, f'compare{rank}'),
            folder,
            (*command, '--work-dir', str(folder)),
            self.training(max([row, *others], key=lambda r: r.rank)) / 'record.json',  # compare.json is written anew
            (self.name_of('dense', 'train'), *needs),
            (rank, self.seed),
        )
