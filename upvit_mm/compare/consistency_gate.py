"""Thresholds that the tokens of a pruned network must reach, and whether they do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upvit_mm.compare.token_table import number
from upvit_mm.consistency.measure import Results
from upvit_mm.consistency.metrics import LOWER_IS_BETTER, METRICS


@dataclass(frozen=True)
class ConsistencyGate:
    """Every measure must be at or above its threshold, at every size and stage.

    Attributes:
        thresholds: by name of a measure that is better when higher.
        last_stage_only: look only at the last stage.

    Raises:
        ValueError: an unknown measure, or a threshold that is no number.
    """

    thresholds: Mapping[str, float]
    last_stage_only: bool = False

    def __post_init__(self):
        known = [name for name in METRICS if name not in LOWER_IS_BETTER]
        for name, least in self.thresholds.items():
            if name not in known or not isinstance(least, (int, float)):
                raise ValueError(f'threshold {name} = {least!r}: must be a number for one of {", ".join(known)}.')

    def failures(self, results: Results) -> list[str]:
        """What is below its threshold or not defined, the worst first."""
        below = []
        for size, stages in results.items():
            for label in list(stages)[-1:] if self.last_stage_only else stages:
                for name, least in self.thresholds.items():
                    value = stages[label][name]
                    if not value >= least:  # NaN too
                        lack = -math.inf if math.isnan(value) else value - least
                        below.append((lack, f'{name} = {number(value).markdown()} < {least:g} in {label} at {size}'))
        return [text for _, text in sorted(below, key=lambda entry: entry[0])]

    def record(self, results: Results) -> dict[str, Any]:
        """For the report: the thresholds, ``passed``, all ``failures``, and the ``verdict`` in one sentence."""
        failures = self.failures(results)
        told = ', '.join(f'{name} >= {least:g}' for name, least in self.thresholds.items())
        told += ' in the last stage' if self.last_stage_only else ' in every stage'
        lacks = f'; {failures[0]} ({len(failures)} below their threshold in all)' if failures else ''
        verdict = f'{"FAIL" if failures else "PASS"}: {told} at every size{lacks}'
        return {**vars(self), 'passed': not failures, 'failures': failures, 'verdict': verdict}

    def check(self, results: Results) -> None:
        """Refuse what fails.

        Raises:
            ValueError: a measure is below its threshold; the message has the verdict.
        """
        record = self.record(results)
        if not record['passed']:
            raise ValueError(f'token consistency is too low: {record["verdict"]}.')
