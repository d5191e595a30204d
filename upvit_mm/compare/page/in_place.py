"""A trained detector that was pruned in place, beside the detectors that were trained on pruned backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upvit_mm.arch.size import size_text
from upvit_mm.compare.cells import Count, Difference, Figure
from upvit_mm.compare.detector_table import DetectorRow
from upvit_mm.compare.page.sources import PRUNING, DetectorRuns
from upvit_mm.compare.paired import paired_difference

NETWORKS = {'sliced': 'sliced', 'compensated': 'repaired'}  # names in report.json, and in the page


@dataclass(frozen=True)
class InPlace:
    """A pruning of one of the trained detectors, judged without any training after it.

    Attributes:
        report: content of its ``report.json``.
        runs: the comparison that the detector comes from.
        row: its backbone there.
        seed: the seed of its training; None = it was only evaluated.
    """

    report: Mapping[str, Any]
    runs: DetectorRuns
    row: DetectorRow
    seed: int | None

    @classmethod
    def of(cls, folder: str | Path, detectors: Sequence[DetectorRuns]) -> InPlace:
        """From a work dir of ``tools/prune.py`` and the comparisons, one of which has the dense detector.

        Raises:
            FileNotFoundError: no ``report.json``.
            ValueError: it is damaged, was not judged, or is of a detector that is in no comparison.
        """
        report = PRUNING.read(folder)
        if not report['held_out']:
            raise ValueError(f'{str(folder)!r}: the detector was not judged; run {PRUNING.tool} with --eval-images.')
        dense = Path(report['checkpoint']).resolve()
        for runs in detectors:
            for row in runs.table.rows:
                for run in row.runs:
                    if Path(run['checkpoint']).resolve() == dense:
                        return cls(report, runs, row, run['seed'])
        raise ValueError(
            f'{str(folder)!r}: the detector that was pruned, {report["checkpoint"]!r}, is in none of the comparisons; '
            'give the folder of the one that trained it.'
        )

    @property
    def networks(self) -> dict[str, str]:
        """Names of the pruned networks in ``report.json``, and of their rows in the page."""
        shown = {name: title for name, title in NETWORKS.items() if name in self.report['held_out']}
        return {name: f'{self.row.name} in place, {title}' for name, title in shown.items()}

    def ap(self, network: str, metric: str) -> float | None:
        """An AP in 0 to 1, for example ``bbox_mAP``; None if the test data have no object of that size."""
        value = self.report['held_out'][network].get(f'coco/{metric}', 0.0)  # mmdet: nothing was detected
        return None if value < 0 else value

    def over_baseline(self, network: str, metric: str) -> Difference:
        """Difference of an AP in % to the baseline of the comparison, which was trained with the same seed."""
        table = self.runs.table
        (baseline,) = [row for row in table.rows if row.name == table.baseline]
        (other,) = [run['metrics'][metric] for run in baseline.runs if run['seed'] == self.seed]
        return Difference.of(paired_difference([self.ap(network, metric)], [other]), 1, 100)

    def costs(self, first: DetectorRow) -> list[Count]:
        """MACs, unknown if the pruning did not count at the size of the comparison, and parameters of the backbone,
        with their share of another one's."""
        pruned = self.report['costs']['pruned']
        macs = pruned.get(f'macs@{size_text(self.runs.table.size)}')
        share = None if macs is None else 100 * macs / first.macs
        params = pruned['params']
        return [Count(macs, 'G', share=share), Count(params, share=100 * params / first.backbone_params)]

    def how(self) -> str:
        """A sentence for a caption."""
        seed = '' if self.seed is None else f', seed {self.seed}'
        dense = Figure.of(self.ap('dense', 'bbox_mAP'), scale=100).markdown()
        return (
            f'In place: the {self.runs.title} trained on {self.row.name}{seed} (box AP {dense}), with its backbone '
            f'pruned ({self.report["goal"]}) and no training after it.'
        )
