"""Does consistency, measured before a detector is trained, predict how good the detector will be?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import ConstantInputWarning, spearmanr

from upvit_mm.consistency.measure import Results
from upvit_mm.consistency.metrics import LOWER_IS_BETTER, METRICS

matplotlib.use('Agg')
ALL_STAGES = 'mean of stages'
FEWEST = 4  # with fewer, a rank correlation means nothing


def check_predictors(names: Collection[str], quality: Mapping[str, float]) -> None:
    """Check before measuring that a rank correlation over these networks is possible.

    Raises:
        ValueError: fewer than 4 networks, or one without a quality.
    """
    missing = sorted(set(names) - set(quality))
    if missing:
        raise ValueError(
            f'{missing[0]!r} has no quality to predict; known: {", ".join(quality)}. Rename it, or leave it out.'
        )
    if len(names) < FEWEST:
        raise ValueError(
            f'{len(names)} networks: a rank correlation needs at least {FEWEST}; add some, or predict nothing.'
        )


def correlations(
    results: Mapping[str, Results], quality: Mapping[str, float], size: str, macs: Mapping[str, float] | None = None
) -> list[dict[str, float | int | str]]:
    """Spearman's rank correlation of every measure, at every stage and in the mean of stages, with a quality.

    Args:
        results: results of ``contrast``, by network.
        quality: the value to predict, such as AP, by network; a superset of ``results``.
        size: one of the results' sizes.
        macs: costs by network, as a predictor that does not use tokens.

    Returns:
        Best first: ``measure``, ``stage``, ``spearman`` (positive = a better value predicts a better quality), its
        two-sided ``p``, and ``networks``, their number. Undefined values come last.

    Raises:
        ValueError: see ``check_predictors``.
    """
    check_predictors(results, quality)
    rows = []
    for measure, stage, values in _predictors(results, size, macs):
        target = [quality[name] for name in values]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ConstantInputWarning)  # the result is NaN, which shows it
            found = spearmanr(list(values.values()), target)
        rho, p = float(found.statistic), float(found.pvalue)
        rows.append({'measure': measure, 'stage': stage, 'spearman': rho, 'p': p, 'networks': len(values)})
    return sorted(rows, key=lambda row: (math.isnan(row['spearman']), -row['spearman']))


def draw_validity(results: Mapping[str, Results], quality: Mapping[str, float], size: str, label: str) -> Figure:
    """Quality against every measure, mean of stages; one dot per network.

    Args:
        results, quality, size: see ``correlations``.
        label: label of the quality.
    """
    panels = [(measure, values) for measure, stage, values in _predictors(results, size) if stage == ALL_STAGES]
    figure = Figure(figsize=(3.2 * len(panels), 3.6), layout='constrained')
    for axes, (measure, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for name, value in values.items():
            axes.plot(value, quality[name], 'o', color='tab:blue')
            axes.annotate(name, (value, quality[name]), textcoords='offset points', xytext=(4, 3), fontsize=6)
        axes.set(xlabel=f'{METRICS[measure]}, {ALL_STAGES}, {size}', ylabel=label)
        axes.grid(alpha=0.3)
    return figure


def _predictors(
    results: Mapping[str, Results], size: str, macs: Mapping[str, float] | None = None
) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Measure, stage and value by network, of measures that all networks have and that are better when higher."""
    stages = {name: found[size] for name, found in results.items()}
    first = next(iter(stages.values()))
    shared = [m for m in METRICS if all(m in figures for s in stages.values() for figures in s.values())]
    for measure in shared:
        sign = -1 if measure in LOWER_IS_BETTER else 1
        by_stage = {label: {n: sign * s[label][measure] for n, s in stages.items()} for label in first}
        yield from ((measure, label, values) for label, values in by_stage.items())
        yield measure, ALL_STAGES, {n: float(np.mean([v[n] for v in by_stage.values()])) for n in stages}
    if macs:
        yield 'macs', '', {name: macs[name] for name in results}
