"""Networks of several seeds as one row."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from upvit_mm.consistency.measure import Results
from upvit_mm.consistency.metrics import METRICS

Groups = Mapping[str, Sequence[str]]  # title of a row -> its networks


def mean_over_seeds(results: Mapping[str, Results], groups: Groups) -> dict[str, Results]:
    """The mean of every measure over the networks of each row; see ``over_seeds``."""
    return over_seeds(results, groups, statistics.fmean)


def std_over_seeds(results: Mapping[str, Results], groups: Groups) -> dict[str, Results]:
    """The sample standard deviation of every measure over each row's networks, NaN for a single one."""
    return over_seeds(results, groups, lambda values: statistics.stdev(values) if len(values) > 1 else float('nan'))


def over_seeds(
    results: Mapping[str, Results], groups: Groups, reduce: Callable[[list[float]], float]
) -> dict[str, Results]:
    """One set of results for each row, every measure reduced over its networks.

    Args:
        results: results of ``contrast``.
        groups: networks by row; those of one row have the same measures.
        reduce: function from one measure of all networks of a row to one number.
    """
    reduced: dict[str, Results] = {}
    for title, names in groups.items():
        reduced[title] = {
            size: {
                label: figures
                | {
                    metric: reduce([results[name][size][label][metric] for name in names])
                    for metric in METRICS
                    if metric in figures
                }
                for label, figures in stages.items()
            }
            for size, stages in results[names[0]].items()
        }
    return reduced
