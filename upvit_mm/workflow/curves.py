"""Curves of repeated trainings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator


def plot_runs(axes: Axes, curves: Sequence[Sequence[float | None]], colour: str, label: str) -> None:
    """A figure by epoch: mean over runs, and the range between the best and the worst.

    Args:
        axes: to draw in.
        curves: ``(runs, epochs)``; an epoch that no run knows is left out.
        colour, label: of the curve.
    """
    values = np.array(curves, dtype=float)
    known = ~np.isnan(values).all(axis=0)
    epochs, values = np.flatnonzero(known) + 1, values[:, known]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(epochs, np.nanmean(values, axis=0), color=colour, label=label, marker='.')
    axes.fill_between(epochs, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=colour, alpha=0.15, lw=0)
