"""Results of a comparison of detectors: AP, its differences, costs and speed of every backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from upvit_mm.compare.cells import Count, Difference, Figure, Latency, Memory
from upvit_mm.compare.json_record import JsonRecord
from upvit_mm.table import Table

KINDS = {'bbox': 'box', 'segm': 'mask'}
AREAS = {'mAP_50': '50', 'mAP_75': '75', 'mAP_s': 's', 'mAP_m': 'm', 'mAP_l': 'l'}
UNCOUNTED = "Without a number of all MACs: torch's counter could not run that detector; the log says why."
COSTS = ('macs', 'detector_macs', 'backbone_params', 'params')


@dataclass(frozen=True)
class DetectorRow(JsonRecord):
    """One backbone in the detector.

    Attributes:
        name: the user's name for it.
        arch: its architecture, in the form of ``arch.json``.
        checkpoint: its weights at the start (the whole detector's, if that was only evaluated); None = random weights.
        sha256: hash of that file; None = it is not a file, or there is one for each seed.
        macs: multiply-accumulates of the backbone.
        detector_macs: of the whole detector without the choice of boxes; None = unknown.
        backbone_params, params: parameters of the backbone, and of the whole detector.
        runs: one run for each seed.
        mean, std: over seeds, by name of the metric, for example ``bbox_mAP``; AP in 0 to 1, None = unknown.
        over_baseline: results of ``paired_difference`` by name of the metric.
        config: file with the config of a whole detector, which has a model of its own; None = a backbone alone.
    """

    name: str
    arch: Mapping[str, Any]
    checkpoint: str | None
    sha256: str | None
    macs: int
    backbone_params: int
    params: int
    runs: Sequence[Mapping[str, Any]]
    mean: Mapping[str, float | None]
    std: Mapping[str, float | None]
    over_baseline: Mapping[str, Mapping[str, Any]]
    config: str | None = None
    detector_macs: int | None = None

    def ap(self, metric: str) -> Figure:
        """An AP in %."""
        return Figure.of(self.mean[metric], self.std[metric], 1, 100)

    def over(self, metric: str) -> Difference:
        """Difference of an AP in % to the baseline's."""
        return Difference.of(self.over_baseline[metric], 1, 100)


@dataclass(frozen=True)
class DetectorTable(JsonRecord):
    """One comparison of detectors; the content of ``detectors.json``.

    Attributes:
        rows: a ``DetectorRow`` for each backbone.
        baseline: name of the row to compare with.
        kinds: kinds of AP, from ``KINDS``.
        size: height and width of the images for costs and speed, in pixels.
        seeds: seeds of the trainings; empty if checkpoints were only evaluated.
        epochs: epochs of every training.
        trained: whether there was a training.
        machine: name of its GPU or CPU.
        processes: number of processes that shared a batch.
        config_sha256: hash of the detector's config.
        upvit_mm_version: version that wrote it.
        speed: result of ``detector_speeds``; None = not measured.
        command: the command line of the tool.
        data: annotation files by part.
        pictures: number of pictures by part; None = unknown.
    """

    rows: Sequence[DetectorRow]
    baseline: str
    kinds: Sequence[str]
    size: Sequence[int]
    seeds: Sequence[int]
    epochs: int | None
    trained: bool
    machine: str
    processes: int
    config_sha256: str
    upvit_mm_version: str
    speed: Mapping[str, Any] | None
    command: str | None = None
    data: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pictures: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> DetectorTable:
        return super().of({**content, 'rows': tuple(map(DetectorRow.of, content['rows']))})

    @property
    def training(self) -> str:
        """How long was trained, and how often."""
        if not self.trained:
            return 'given checkpoints, only evaluated'
        epochs = f'{self.epochs} epoch{"s" if self.epochs > 1 else ""}'
        return f'{epochs}, seed{"s" if len(self.seeds) > 1 else ""} {", ".join(map(str, self.seeds))}'

    @property
    def tested(self) -> str:
        """On what AP was taken, without its file."""
        return f'{count} test pictures' if (count := self.pictures.get('test')) else 'the test data'

    def how_made(self) -> str:
        """A caption that says how long was trained, on what, and on what AP was taken."""
        trained = ''
        if self.trained:
            count = self.pictures.get('train')
            trained = f' on {f"{count} pictures" if count else "the training data"}{self._files("train")}'
        return f'{self.training.capitalize()}{trained}; AP on {self.tested}{self._files("test")}.'

    def _files(self, part: str) -> str:
        return f' ({", ".join(files)})' if (files := self.data.get(part)) else ''

    def over(self, row: DetectorRow, metric: str) -> Difference | None:
        """Difference of a row to the baseline; None for the baseline itself."""
        return None if row.name == self.baseline else row.over(metric)

    def ap_table(self, kind: str) -> Table:
        """AP of one of ``kinds``, its differences, and AP by threshold and by object size."""
        first, *others = (f'{kind}_{area}' for area in ('mAP', *AREAS))
        header = ['backbone', f'{KINDS[kind]} AP', f'over {self.baseline}', *(f'AP {area}' for area in AREAS.values())]
        rows = [[row.name, row.ap(first), self.over(row, first), *map(row.ap, others)] for row in self.rows]
        return Table(header, rows)

    def cost_table(self, header: Sequence[str]) -> Table:
        """MACs, parameters and, where measured, latency, images a second and peak memory.

        Args:
            header: names of the eight columns; the last three are left out if speed was not measured.
        """
        rows = [[row.name, *self._costs(row), *self._speeds(row)] for row in self.rows]
        return Table(header if self.speed else header[:5], rows)

    def sheet(self) -> Table:
        """All numbers with all digits, AP in 0 to 1."""
        metrics = list(self.rows[0].mean)
        ends = ('', '_std', *(f'_over_baseline{end}' for end in ('', '_std', '_low', '_high', '_established')))
        speeds = ['latency_seconds', 'images_per_second', 'peak_bytes'] if self.speed else []
        header = ['name', 'arch', *(f'{name}{end}' for name in metrics for end in ends), *COSTS, *speeds]
        rows = []
        for row in self.rows:
            cells = [row.name, row.arch['name']]
            for name in metrics:
                over = row.over_baseline[name]
                interval = over['interval'] or (None, None)
                cells += [row.mean[name], row.std[name], over['mean'], over['std'], *interval, over['established']]
            cells += [getattr(row, name) for name in COSTS]
            if self.speed:
                speed = self.speed['detectors'][row.name]
                cells += [speed['latency']['median'], speed['throughput'], speed['peak_bytes']]
            rows.append([*cells, row.checkpoint, row.sha256])
        return Table([*header, 'checkpoint', 'sha256'], rows)

    def _costs(self, row: DetectorRow) -> list[Count]:
        return [Count(row.macs, 'G'), Count(row.detector_macs, 'G'), Count(row.backbone_params), Count(row.params)]

    def _speeds(self, row: DetectorRow) -> list[Any]:
        if not self.speed:
            return []
        speed = self.speed['detectors'][row.name]
        latency = Latency(*(speed['latency'][name] for name in ('median', 'low', 'high')))
        return [latency, Figure(speed['throughput']), Memory(speed['peak_bytes'])]
