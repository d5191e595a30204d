"""Charts of the experiment's page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from upvit_mm.compare.curves import plot_runs, range_over, style_of
from upvit_mm.compare.page.charts import Point, as_svg, trade_off
from upvit_mm.evidence.results import CLAIMS, StudyFound, Variant, rows_in
from upvit_mm.evidence.studies import SHORT

Chart = dict[str, Any]  # 'svg' and 'text'


def study_charts(study: StudyFound, name: str) -> list[Chart]:
    """Each metric against costs, UP's differences with their intervals, and the trainings by epoch.

    Args:
        study: the figures.
        name: prefix of the charts' elements, unique in the page.
    """
    charts = [_costs(study, metric, f'{name}-costs{k}') for k, metric in enumerate(study.metrics)]
    charts += [_differences(study, study.metrics[0], f'{name}-once', at_once=True)]
    charts += [_differences(study, metric, f'{name}-differences{k}') for k, metric in enumerate(study.metrics)]
    return [chart for chart in (*charts, _curves(study, f'{name}-curves')) if chart]


def prediction_chart(found: Sequence[Variant], measure: str, name: str) -> Chart:
    """A measure before training against the share of the dense AP after it, a point for each variant."""
    figure = Figure(layout='constrained')
    axes = figure.subplots()
    studies = list(dict.fromkeys(one.study for one in found))
    for k, row in enumerate(dict.fromkeys(one.row for one in found)):
        for study in studies:
            own = [one for one in found if (one.row, one.study) == (row, study)]
            if own:
                style = {**style_of(k), 'linestyle': 'none', 'marker': 'os^DvPX'[studies.index(study) % 7]}
                label = SHORT[row] if len(studies) == 1 else f'{SHORT[row]}, {study}'
                axes.plot([one.before for one in own], [100 * one.after for one in own], **style, label=label)
    axes.set(xlabel=f'{measure}, before training', ylabel='% of the dense AP, after')
    axes.grid(alpha=0.3)
    text = f'{measure} before training against the share of the dense AP after it, {len(found)} variants.'
    return {'svg': as_svg(figure, name), 'text': text}


def _costs(study: StudyFound, metric: str, name: str) -> Chart | None:
    points: list[Point] = []
    for k, row in enumerate(rows_in(study.study)):
        for part, label in (('score', SHORT[row.name]), ('one_shot', f'{SHORT[row.name]}, at once')):
            values = list(study.values(row.name, metric, part).values())
            macs = list(study.values(row.name, 'macs', 'costs').values())
            if values and macs:
                style = style_of(k) | ({'markerfacecolor': 'none'} if part == 'one_shot' else {})
                spread = statistics.stdev(values) if len(values) > 1 else None
                points.append((label, statistics.fmean(macs), statistics.fmean(values), spread, style))
    what = 'MACs of the backbone' if study.study.is_detector else 'MACs'
    return trade_off(points, what, metric, name) if len(points) > 1 else None


def _differences(study: StudyFound, metric: str, name: str, at_once: bool = False) -> Chart | None:
    """A line for each claim: the mean difference and its 95 % interval, with the zero that decides."""
    found = [(row, other, study.difference(row, other, metric, at_once)) for row, other in CLAIMS]
    metric += ' at once' if at_once else ''
    found = [(row, other, told) for row, other, told in found if told and told['interval']]
    if not found:
        return None
    figure = Figure(layout='constrained')
    axes = figure.subplots()
    texts = []
    for k, (row, other, told) in enumerate(found):
        (low, high), mean = told['interval'], told['mean']
        colour = 'tab:blue' if told['established'] else 'tab:gray'
        axes.errorbar(mean, -k, xerr=[[mean - low], [high - mean]], fmt='o', color=colour, capsize=3)
        label = f'{SHORT[row]} minus {SHORT[other]}'
        axes.annotate(label, (mean, -k), (0, 7), textcoords='offset points', ha='center', fontsize=9)
        texts.append(f'{label} {mean:+.1f} [{low:+.1f}, {high:+.1f}]')
    axes.axvline(0, color='black', linestyle=':')
    axes.set(
        xlabel=f'difference in {metric}, 95 % interval; blue: established', yticks=[], ylim=(0.5 - len(found), 0.8)
    )
    axes.margins(x=0.25)
    axes.grid(alpha=0.3, axis='x')
    return {'svg': as_svg(figure, name), 'text': f'Differences in {metric}: {"; ".join(texts)}.'}


def _curves(study: StudyFound, name: str) -> Chart | None:
    """The trainings by epoch; those that start from the dense network go on where it ended."""
    figure, drawn = Figure(layout='constrained'), []
    axes = figure.subplots()
    for k, row in enumerate(rows_in(study.study)):
        own = [rows[row.name] for rows in study.by_seed.values()]
        curves = [found.curve for found in own if found.score and any(found.curve)]  # of finished trainings
        if curves:
            before = study.epochs['dense'] if row.how not in ('dense', 'vanilla') else 0
            length = max(map(len, curves))
            padded = [[None] * before + curve + [None] * (length - len(curve)) for curve in curves]
            plot_runs(axes, padded, k, SHORT[row.name])
            drawn.append(SHORT[row.name])
    if not drawn:
        return None
    what = "loss of training, without the teacher's" if study.study.is_detector else 'top-1 %'
    axes.set(xlabel="epoch, the dense network's included", ylabel=what)
    axes.grid(alpha=0.3)
    text = f'By epoch, {what}: {", ".join(drawn)}{range_over(study.seeds)}.'
    return {'svg': as_svg(figure, name), 'text': text}
