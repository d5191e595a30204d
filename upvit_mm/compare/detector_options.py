"""Options of a comparison of detectors. Importing this file takes no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from upvit_mm.arch.size import Size


@dataclass(frozen=True)
class DetectorOptions:
    """Options of a comparison.

    Attributes:
        seeds: the detector is trained once with each seed on every backbone; empty = checkpoints are only evaluated.
        epochs: epochs of every training; None = the config's.
        baseline: name of the backbone to compare with; None = the first.
        size: ``(height, width)`` of images for costs and speed; None = the size of the test pipeline.
        jobs: trainings at a time.
        batch: images per batch for the throughput.
        repeats: timed runs of each detector; 0 = speed is not measured.

    Raises:
        ValueError: a setting that makes no sense.
    """

    seeds: Sequence[int] = (0, 1, 2)
    epochs: int | None = None
    baseline: str | None = None
    size: Size | None = None
    jobs: int = 1
    batch: int = 4
    repeats: int = 10

    def __post_init__(self):
        for name in ('epochs', 'jobs', 'batch'):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f'{name} = {getattr(self, name)}: must be at least 1.')
        if self.repeats < 0 or self.repeats == 1:
            raise ValueError(f'repeats = {self.repeats}: at least 2, or 0 to leave speed out.')
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f'seeds = {list(self.seeds)}: each once.')
