"""Styles of the rows of a chart, and curves of repeated trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

# At least 3:1 against the light and the dark paper of compare/page/page.css.
COLOURS = ('tab:blue', '#d9690f', 'tab:green', 'tab:purple', 'tab:red', 'tab:gray', '#c2569f', '#168a92')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
DASHES = ('-', '--', '-.', (0, (5, 1, 1, 1, 1, 1)))  # dotted is for reference lines
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
