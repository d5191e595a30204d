"""Is one row of a comparison better than another? Their difference over seeds, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

LEVEL = 0.95
AP_STEP = 0.001  # mmdet rounds AP to three decimals


def paired_difference(
    values: Sequence[float | None], others: Sequence[float | None], step: float = 0
) -> dict[str, Any]:
    """The mean difference of two rows and its 95 % interval: Student's t over the differences of each pair.

    Args:
        values: values of one row, one for each seed; None or NaN = unknown.
        others: values of the row to compare with, for the same seeds in the same order.
        step: what both were rounded to; the interval is that of differences with the variance of two rounding errors,
            ``step**2 / 12`` each, on top. Else values that are equal only by rounding would establish anything.

    Returns:
        Plain data. ``mean`` and ``std`` (of a sample) of the differences; ``interval``, ``[low, high]``, which contains
        the true mean in 95 of 100 such comparisons; ``established``, whether the whole interval is above 0 (a gain) or
        below 0 (a loss). With one pair only ``mean`` is known, with an unknown value nothing; all others are None.
    """
    assert len(values) == len(others) > 0, f'{len(values)} values and {len(others)} others'
    pairs = np.array([values, others], dtype=float)
    differences = (pairs[0] - pairs[1]).round(12)  # 0.3 - 0.2 is not 0.4 - 0.3 in floating point
    n = len(differences)
    if np.isnan(differences).any():
        return {'mean': None, 'std': None, 'interval': None, 'established': None}
    mean = float(differences.mean())
    if n == 1:
        return {'mean': mean, 'std': None, 'interval': None, 'established': None}
    std = float(differences.std(ddof=1))
    half = float(student.ppf((1 + LEVEL) / 2, n - 1)) * ((std**2 + step**2 / 6) / n) ** 0.5
    low, high = mean - half, mean + half
    return {'mean': mean, 'std': std, 'interval': [low, high], 'established': low > 0 or high < 0}


def how_differences(seeds: int) -> str:
    """A sentence for a caption: what the differences are, and when one is established.

    Args:
        seeds: number of seeds of each row.
    """
    if seeds < 2:
        return 'One seed: there is no interval, so no gain and no loss is established.'
    return (
        "Differences are means over seeds, paired by seed, with their 95 % interval (Student's t, each difference for "
        'itself). Bold: the interval is wholly above or below 0. All others are not established; one seed has none.'
    )
