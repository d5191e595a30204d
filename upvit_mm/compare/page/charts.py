"""Charts as SVG with the page's font; black becomes the colour of the page's text."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from upvit_mm.compare import classifier_report, detector_report
from upvit_mm.compare.cells import COUNT
from upvit_mm.compare.classifier_table import ClassifierTable
from upvit_mm.compare.curves import STEPS, range_over, set_percent_axis, style_of
from upvit_mm.compare.detector_table import KINDS, DetectorTable

matplotlib.use('Agg')
WIDTH, HEIGHT = 5, 3.2  # inches; letters of 10 points are as large as the page's on a phone
DENSE = {'color': 'black', 'marker': '*'}  # beside rows in the styles of compare/curves.py
Point = tuple[str, float, float, float | None, dict[str, Any]]  # name, MACs, mean and spread in %, style


def detector_charts(table: DetectorTable, name: str) -> list[dict[str, Any]]:
    """AP against MACs for boxes and masks if backbones differ, and box AP by epoch if there was a training.

    Args:
        table: the comparison.
        name: prefix of the charts' elements, unique in the page.
    """
    charts = []
    for kind in table.kinds:
        figures = [row.ap(f'{kind}_mAP') for row in table.rows]
        if len(figures) == 1 or figures[0].mean is None:  # nothing to compare; data without an object
            continue
        points = [
            (row.name, row.macs, figure.mean, figure.std, style_of(k))
            for k, (row, figure) in enumerate(zip(table.rows, figures))
        ]
        charts.append(trade_off(points, 'MACs of the backbone', f'{KINDS[kind]} AP', f'{name}-{kind}'))
    if table.trained:
        names = ', '.join(row.name for row in table.rows)
        text = f'Box AP on the validation data by epoch: {names}{range_over(table.seeds)}.'
        charts.append({'svg': as_svg(detector_report.draw_curves(table), f'{name}-curves'), 'text': text})
    return charts


def classifier_charts(compared: ClassifierTable) -> list[dict[str, Any]]:
    """Top-1 against MACs, and by epoch."""
    points: list[Point] = [('dense', compared.dense['macs'], compared.dense['top1'], None, DENSE)]
    for k, row in enumerate(compared.rows):
        points.append((row.title, compared.target['macs'], row.mean, row.std, style_of(k)))
    names, spread = '; '.join(row.title for row in compared.rows), range_over(compared.options['seeds'])
    text = f'Top-1 by epoch: {names}{spread}; dotted: dense.'
    curves = as_svg(classifier_report.draw_curves(compared), 'top1-curves')
    return [trade_off(points, 'MACs', 'top-1', 'top1'), {'svg': curves, 'text': text}]


def trade_off(points: Sequence[Point], cost: str, quality: str, name: str) -> dict[str, Any]:
    """A quality in % against a cost, with the spread over seeds.

    Args:
        points: the networks.
        cost, quality: labels of the axes.
        name: see ``as_svg``.
    """
    figure = Figure(layout='constrained')
    axes = figure.subplots()
    for label, macs, mean, std, style in points:
        axes.errorbar(macs, mean, yerr=std, capsize=3, label=label, **{**style, 'linestyle': 'none'})
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set(xlabel=cost, ylabel=f'{quality}, %')
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=STEPS))
    axes.set_xlim(0, 1.08 * max(macs for _, macs, *_ in points))
    set_percent_axis(axes)
    axes.grid(alpha=0.3)
    told = '; '.join(f'{label} {mean:.1f} % at {COUNT(macs)}' for label, macs, mean, _, _ in points)
    return {'svg': as_svg(figure, name), 'text': f'{quality} against {cost}: {told}.'}


def as_svg(figure: Figure, name: str) -> Markup:
    """A figure for the page: small, legend below, transparent, with the page's colour for black.

    Args:
        figure: a figure with one panel; its size and legend are changed.
        name: prefix of its elements, unique in the page.
    """
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    if legend := axes.get_legend():
        legend.remove()
    columns = 1 if max(map(len, labels), default=0) > 16 else 3
    if labels:
        figure.legend(handles, labels, loc='outside lower center', ncols=columns, handlelength=3, frameon=False)
    figure.set_size_inches(WIDTH, HEIGHT + 0.2 * -(-len(labels) // columns))
    buffer = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': name}):
        nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
        figure.savefig(buffer, format='svg', transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = re.sub(r'( id="|url\(#|href="#)', rf'\g<1>{name}-', svg[svg.index('<svg') :])
    return Markup(svg.replace('#000000', 'currentColor'))


def picture_uri(path: Path) -> dict[str, Any]:
    """A picture file for the page: ``src``, ``width`` and ``height``."""
    with Image.open(path) as picture:
        buffer = io.BytesIO()
        picture.convert('RGB').save(buffer, 'webp', quality=88)
        return {'src': data_uri(buffer), 'width': picture.width, 'height': picture.height}


def data_uri(webp: io.BytesIO) -> str:
    """A WebP picture as a ``data:`` URI, for a self-contained page."""
    return f'data:image/webp;base64,{base64.b64encode(webp.getvalue()).decode()}'
