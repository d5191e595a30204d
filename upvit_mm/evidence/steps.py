"""Which commands an experiment takes, and what each of them needs. All are tools that a user can run alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from upvit_mm.evidence.studies import SIZES, Row, Study
from upvit_mm.installed import config_path

UNJUDGED = 'train_cfg.val_begin=1000000'  # epochs: never


@dataclass(frozen=True)
class Step:
    """A command of the experiment.

    Attributes:
        name: its unique name, also that of its log.
        folder: folder of what it writes.
        command: tool and arguments, for ``python -m upvit_mm``.
        output: the file that it writes last.
        needs: names of the steps before it.
        rank: steps with a low rank run first.
        resumes: whether the tool itself goes on with an interrupted folder; a training is told to (``--resume``).
        texts: files to write before it, with their content.
        way: what its tool does now and did otherwise before, though the command is the same.
        config: config of the study, whose content decides the result.
        home: folder of its study and seed, for the record of finished steps; None = the work dir. Experiments on other
            studies and seeds can run beside this one in the same work dir.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    output: Path
    needs: tuple[str, ...] = ()
    rank: tuple[int, ...] = (0,)
    resumes: bool = True
    texts: tuple[tuple[Path, str], ...] = ()
    way: str = ''
    config: str = ''
    home: Path | None = None


@dataclass(frozen=True)
class Plan(ABC):
    """The steps of a study with one seed.

    Attributes:
        study: the study.
        seed: seed of everything random.
        scale: ``'cpu'`` or ``'gpu'``.
        root: the work dir of the experiment.
    """

    study: Study
    seed: int
    scale: str
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / self.study.data / self.study.family / f'seed{self.seed}'

    @property
    def config(self) -> str:
        return config_path(f'real/{self.study.config}.py')

    @property
    def size(self) -> str:
        return '{}x{}'.format(*SIZES[self.study.data, self.study.family][self.scale])

    def name_of(self, row: str, part: str) -> str:
        return f'{self.study.name}/seed{self.seed}/{row}/{part}'

    def checkpoint(self, row: Row) -> Path:
        """The weights of a row at the end."""
        epochs = self.study.epochs(row, self.scale)
        return self.folder / row.name / 'train' / f'epoch_{epochs}.pth'

    @property
    def dense(self) -> Row:
        return self.study.rows[0]

    @abstractmethod
    def steps(self, rank: int) -> Iterator[Step]:
        """The steps for the rows of a rank; they may need steps of lower ranks."""

    def train_step(
        self,
        row: Row,
        config: str,
        options: Sequence[str],
        needs: Sequence[str],
        texts: tuple[tuple[Path, str], ...] = (),
    ) -> Step:
        """The training of a row: a config with options, started or gone on with."""
        folder, epochs = self.folder / row.name / 'train', self.study.epochs(row, self.scale)
        if self.study.slow_to_judge:
            options = [UNJUDGED, *options]
        options = [f'train_cfg.max_epochs={epochs}', f'randomness.seed={self.seed}', *options]
        command = ('train', config, '--work-dir', str(folder), '--resume', '--cfg-options', *options)
        rank = (row.rank, self.seed)
        return Step(
            self.name_of(row.name, 'train'), folder, command, self.checkpoint(row), tuple(needs), rank, False, texts
        )
