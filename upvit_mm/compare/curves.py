"""Styles of the rows of a chart, and curves of repeated trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter

# At least 3:1 against the light and the dark paper of compare/page/page.css.
COLOURS = ('tab:blue', '#d9690f', 'tab:green', 'tab:purple', 'tab:red', 'tab:gray', '#c2569f', '#168a92')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
DASHES = ('-', '--', '-.', (0, (5, 1, 1, 1, 1, 1)))  # dotted is for reference lines
STEPS = (1, 2, 5, 10)  # ticks are at multiples of these, times a power of 10
NARROWEST = 2.0  # height of a chart in percentage points: less would make noise look like a difference
MARKED = 12  # about the most markers of a curve; more would hide the dashes


def style_of(k: int) -> dict[str, Any]:
    """Colour, marker and dash of row ``k`` of a chart, for matplotlib.

    In grey, 7 rows differ by their marker, and 28 by marker and dash.
    """
    return {
        'color': COLOURS[k % len(COLOURS)],
        'marker': MARKERS[k % len(MARKERS)],
        'linestyle': DASHES[k % len(DASHES)],
    }


def plot_runs(axes: Axes, curves: Sequence[Sequence[float | None]], k: int, label: str) -> None:
    """Draw a value by epoch: mean over runs, and the range between the best and the worst.

    Args:
        axes: to draw in.
        curves: ``(runs, epochs)``; an epoch without a value in any run is left out.
        k: the curve's row in the chart, see ``style_of``.
        label: label of the curve.
    """
    values, style = np.array(curves, dtype=float), style_of(k)
    known = ~np.isnan(values).all(axis=0)
    epochs, values = np.flatnonzero(known) + 1, values[:, known]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    every = -(-len(epochs) // MARKED) or 1
    axes.plot(epochs, np.nanmean(values, axis=0), **style, label=label, markevery=every)
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    axes.fill_between(epochs, low, high, color=style['color'], alpha=0.15, lw=0)


def range_over(seeds: Sequence[int]) -> str:
    """What the curves of ``plot_runs`` show, for a caption; nothing with one seed."""
    return ', mean and range over seeds' if len(seeds) > 1 else ''


def set_percent_axis(axes: Axes) -> None:
    """Round numbers on the vertical axis, at both ends too, within 0 to 100 %, with at least ``NARROWEST`` between.

    Call it when everything is drawn.
    """
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max((high - low) / 2, NARROWEST / 2)
    locator = MaxNLocator(nbins=6, steps=STEPS)
    ticks = locator.tick_values(middle - half, middle + half)
    axes.set_ylim(max(ticks[0], 0), min(ticks[-1], 100))
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
