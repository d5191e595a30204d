"""The steps of a detector's study: its dense detector is trained, pruned in place, and trained further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from upvit_mm.evidence.steps import Plan, Step
from upvit_mm.evidence.studies import PVT, STUDIES, VIT, Row
from upvit_mm.pruning.head_axes import AXES

PICTURES = 30  # on which consistency is measured
BACKBONES = {VIT: 'DroppingViT', PVT: 'DroppingPVTv2'}
DROPPING = '''"""The dense detector of {config} with token dropping at the cost of {arch}."""

_base_ = {config!r}
custom_imports = dict(imports=['upvit_mm.compare.dropping_backbones'], allow_failed_imports=False)
model = dict(backbone=dict(type='upvit_mm.{backbone}', keep_rate={arch!r}, init_cfg=None))
load_from = {dense!r}
'''
TEACHER = """custom_hooks = [
    *_base_.custom_hooks,
    dict(type='upvit_mm.FollowDense', config={config!r}, checkpoint={dense!r}),
]
"""


@dataclass(frozen=True)
class DetectorPlan(Plan):
    """The plan of a study on a detector."""

    def model_config(self, row: Row) -> str:
        """The config that builds a row's detector."""
        if row.how in ('dense', 'continued'):
            return self.config
        if row.how == 'dropping':
            return str(self.folder / row.name / 'detector.py')
        return str(self.pruned(row) / 'detector.py')

    def pruned(self, row: Row) -> Path:
        """The folder with the result of pruning that has the row's shape."""
        return self.folder / (row.name if row.how == 'pruned' else row.shape_of) / 'pruned'

    def steps(self, rank: int) -> Iterator[Step]:
        rows = [row for row in self.study.rows if row.rank == rank]
        for row in rows:
            if row.how == 'pruned':
                yield self._prune(row)
            yield self._train(row)
            if (row.how == 'dropping' and row.taught) or (row.how == 'pruned' and self.study.slow_to_judge):
                yield self._at_once(row)
        yield self._evaluate(rows, rank)
        if pruned := [row for row in rows if row.how == 'pruned']:
            yield self._consistency(pruned, rank)

    # ---------------------------------------------------------------------- parts

    def _prune(self, row: Row) -> Step:
        dense, folder = self.dense, self.pruned(row)
        if row.method == 'fisher':
            goal, needs = ('--budget', f'macs={row.share}%@{self.size}'), ()
        else:  # the same widths, of other channels; in attention of heads' own, not of low-rank ones
            like = self.folder / row.shape_of / 'pruned/arch.json'
            goal = ('--target', str(like), '--method', row.method, '--attention', 'channels')
            needs = (self.name_of(row.shape_of, 'prune'),)
        command = ('prune', self.config, str(self.checkpoint(dense)), *goal, '--seed', str(self.seed))
        command += ('--num-images', str(self.study.proxy[self.scale]))
        if self.study.slow_to_judge:
            command += ('--eval-images', '0')
        return Step(
            self.name_of(row.name, 'prune'),
            folder,
            (*command, '--work-dir', str(folder), '--overwrite'),
            folder / 'report.json',
            (self.name_of('dense', 'train'), *needs),
            (row.rank, self.seed),
            way=AXES if row.method == 'fisher' else '',
        )

    def _train(self, row: Row) -> Step:
        config, shape = self.model_config(row), self.name_of(row.shape_of, 'prune')
        if row.how == 'dense':
            if self.study.starts_from is None:
                return self.train_step(row, config, (), ())
            (study,) = [s for s in STUDIES if (s.data, s.family) == self.study.starts_from]
            start = type(self)(study, self.seed, self.scale, self.root)
            weights = f'model.backbone.init_cfg.checkpoint={start.checkpoint(start.dense)}'
            return self.train_step(row, config, [weights], [start.name_of('dense', 'train')])
        if row.how == 'continued':
            weights = f'load_from={self.checkpoint(self.dense)}'
            return self.train_step(row, config, [weights], [self.name_of('dense', 'train')])
        if row.how == 'pruned':
            follower = str(self.pruned(row) / 'detector_distil.py')
            return self.train_step(row, follower, (), [self.name_of(row.name, 'prune')])
        if row.how == 'alone':
            return self.train_step(row, config, (), [shape])
        if row.how == 'vanilla':
            options = ['load_from=None', 'model.backbone.init_cfg=None']
            if self.study.family == VIT:  # there is no pretrained block to spare
                options.append('optim_wrapper.paramwise_cfg.layer_decay_rate=1.0')
            return self.train_step(row, config, options, [shape])
        return self.train_step(row, config, (), [shape], self._dropping_config(row))

    def _dropping_config(self, row: Row) -> tuple[tuple[Path, str], ...]:
        """The config of token dropping, to write before the steps that read it."""
        dense, backbone = str(self.checkpoint(self.dense)), BACKBONES[self.study.family]
        arch = str(self.pruned(row) / 'arch.json')
        text = f'{DROPPING}{TEACHER}' if row.taught else DROPPING
        text = text.format(config=self.config, arch=arch, dense=dense, backbone=backbone)
        return ((Path(self.model_config(row)), text),)

    def _at_once(self, row: Row) -> Step:
        """A row before its training: with the dense detector's weights, or those that pruning left."""
        folder, texts = self.folder / f'{row.name}-at-once', ()
        needs, weights = [self.name_of(row.shape_of, 'prune')], self.pruned(row) / 'detector.pth'
        if row.how == 'dropping':
            needs, weights = [self.name_of('dense', 'train'), *needs], self.checkpoint(self.dense)
            texts = self._dropping_config(row)
        return Step(
            self.name_of(row.name, 'at-once'),
            folder,
            ('compare_detectors', self.config, '--evaluate', '--size', self.size, '--repeats', '0')
            + ('--work-dir', str(folder), '--backbones', f'{row.name}={self.model_config(row)},{weights}'),
            folder / 'detectors.json',
            tuple(needs),
            (row.rank, self.seed),
            texts=texts,
        )

    def _evaluate(self, rows: Sequence[Row], rank: int) -> Step:
        folder = self.folder / f'evaluated{rank}'
        backbones = [f'{row.name}={self.model_config(row)},{self.checkpoint(row)}' for row in rows]
        repeats = '10' if (rank, self.seed) == (0, 0) else '0'  # side by side with the dense one, else not comparable
        return Step(
            self.name_of('all', f'evaluate{rank}'),
            folder,
            ('compare_detectors', self.config, '--evaluate', '--size', self.size, '--repeats', repeats)
            + ('--work-dir', str(folder), '--backbones', *backbones),
            folder / 'detectors.json',
            tuple(self.name_of(row.name, 'train') for row in rows),
            (rank, self.seed),
        )

    def _consistency(self, rows: Sequence[Row], rank: int) -> Step:
        folder, dense = self.folder / f'consistency{rank}', self.checkpoint(self.dense)
        networks = [f'{row.name}={self.pruned(row) / "arch.json"},{self.pruned(row) / "detector.pth"}' for row in rows]
        return Step(
            self.name_of('all', f'consistency{rank}'),
            folder,
            ('compare_consistency', self.config, str(dense), '--networks', *networks, '--drop-tokens', 'last')
            + ('--equal-macs', rows[0].name, '--images', f'data/{self.study.data}/annotations/instances_val.json')
            + ('--image-root', f'data/{self.study.data}/images/val')
            + ('--max-images', str(PICTURES), '--sizes', self.size, '--work-dir', str(folder)),
            folder / 'contrast.json',
            tuple(self.name_of(row.name, 'prune') for row in rows),
            (rank, self.seed, 1),
        )
