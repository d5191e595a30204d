"""Results of a comparison of tokens: every measure of every network by input size and stage, over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from upvit_mm.compare.cells import Count, Difference, Figure
from upvit_mm.compare.json_record import JsonRecord
from upvit_mm.compare.seeds import Groups, mean_over_seeds, std_over_seeds
from upvit_mm.consistency.measure import Results
from upvit_mm.consistency.metrics import METRICS
from upvit_mm.table import Table

UNKNOWN = Difference(None, None, None)


@dataclass(frozen=True)
class TokenTable(JsonRecord):
    """One comparison of tokens; the content of ``contrast.json``.

    Attributes:
        results: results of ``contrast``, by network; NaN = not defined.
        groups: names of the networks of each row, which differ only in the seed; by default each network is a row.
        macs: multiply-accumulates by network and size, if known.
        over: differences to the row ``to``: ``rows`` of them by title, size, stage and measure, and ``how``.
        predicted: ``rows`` of ``correlations`` with ``ap``, ``size`` and ``file``.
        dense: record of the dense network.
        networks: records of the others.
        settings: settings of the measurement.
        command: the command line of the tool.
        folder: the folder that it was read from.
    """

    results: Mapping[str, Results]
    groups: Groups = field(default_factory=dict)
    macs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    over: Mapping[str, Any] | None = None
    predicted: Mapping[str, Any] | None = None
    dense: Mapping[str, Any] | None = None
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    folder: Path | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> TokenTable:
        results = _with_nan(content['results'])
        groups = content.get('groups') or {name: [name] for name in results}
        return super().of({**content, 'results': results, 'groups': groups})

    @property
    def sizes(self) -> list[str]:
        """Sizes of the images, for example ``224x224``."""
        return list(next(iter(self.results.values())))

    def stages(self, size: str) -> list[str]:
        """Stages in their order."""
        return list(next(iter(self.results.values()))[size])

    def last_measures(self, size: str) -> list[str]:
        """The measures that a network has at the last stage, by their names in ``METRICS``."""
        stage = self.stages(size)[-1]
        return [name for name in METRICS if any(name in found[size][stage] for found in self.results.values())]

    @cached_property
    def means(self) -> Mapping[str, Results]:
        """Mean over seeds of every measure, by title of the row."""
        return mean_over_seeds(self.results, self.groups)

    @cached_property
    def spreads(self) -> Mapping[str, Results]:
        """Standard deviation over seeds of every measure, by title of the row."""
        return std_over_seeds(self.results, self.groups)

    def figure(self, title: str, size: str, stage: str, measure: str, digits: int, unknown: str = '-') -> Figure:
        """A measure of a row; unknown if its networks do not have it."""
        mean, std = (found[title][size][stage].get(measure) for found in (self.means, self.spreads))
        return Figure.of(mean, std, digits, unknown=unknown)

    def difference(self, title: str, size: str, stage: str, measure: str, digits: int) -> Difference:
        """Difference of a row to the first one; unknown for the first, or if one lacks the measure."""
        found = self.over['rows'].get(title, {}).get(size, {}).get(stage, {}).get(measure)
        return UNKNOWN if found is None else Difference.of(found, digits)

    def cost(self, title: str, size: str) -> Count:
        """Mean MACs of a row's networks."""
        macs = [self.macs.get(name, {}).get(size) for name in self.groups[title]]
        return Count(None if None in macs else fmean(macs), 'G', 4)

    def measure_table(self, measure: str, size: str) -> Table:
        """One measure at every stage, a row for each row that has it."""
        stages = self.stages(size)
        rows = [
            [title, self.cost(title, size), *(self.figure(title, size, s, measure, 4, 'not defined') for s in stages)]
            for title, found in self.means.items()
            if measure in measured(found)
        ]
        return Table(['network', 'MACs', *stages], rows)

    def difference_table(self, size: str) -> Table:
        """Every measure at the last stage, as difference to the first row."""
        titles = list(self.over['rows'])
        stage = list(self.over['rows'][titles[0]][size])[-1]
        found = [self.over['rows'][title][size][stage] for title in titles]
        names = [name for name in METRICS if any(name in differences for differences in found)]
        rows = [[title, *(self.difference(title, size, stage, name, 4) for name in names)] for title in titles]
        return Table(['network', *(METRICS[name] for name in names)], rows)

    def predicted_table(self) -> Table:
        """How well every measure ranks the networks."""
        rows = [
            [METRICS.get(r['measure'], 'MACs'), r['stage'], *(number(r[k]) for k in ('spearman', 'p')), r['networks']]
            for r in self.predicted['rows']
        ]
        return Table(['measure', 'stage', 'Spearman', 'p', 'networks'], rows)

    def sheet(self) -> Table:
        """All numbers with all digits: one line for each network, size and stage."""
        header = ['variant', 'size', 'stage', 'height', 'width', 'tokens', 'macs', *METRICS]
        rows = [
            [name, size, stage, *figures['grid'], figures['tokens'], self.macs.get(name, {}).get(size)]
            + [figures.get(measure) for measure in METRICS]
            for name, sizes in self.results.items()
            for size, stages in sizes.items()
            for stage, figures in stages.items()
        ]
        return Table(header, rows)


def measured(results: Results) -> list[str]:
    """The measures of these results, in their order."""
    stage = next(iter(next(iter(results.values())).values()))
    return [name for name in METRICS if name in stage]


def stage_table(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a stage of the results at one size."""
    names = [name for name in METRICS if name in next(iter(stages.values()))]
    rows = [
        [label, 'x'.join(map(str, figures['grid'])), *(number(figures[name]) for name in names)]
        for label, figures in stages.items()
    ]
    return Table(['stage', 'grid (both)', *(METRICS[name] for name in names)], rows)


def number(value: float) -> Figure:
    """A measure of one network."""
    return Figure.of(value, digits=4, unknown='not defined')


def _with_nan(value: Any) -> Any:
    """JSON has no NaN: the reports write None."""
    if isinstance(value, Mapping):
        return {key: _with_nan(entry) for key, entry in value.items()}
    return math.nan if value is None else value
