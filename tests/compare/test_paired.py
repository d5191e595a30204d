"""Differences over seeds: when a gain may be called one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from upvit_mm.compare.cells import Difference
from upvit_mm.compare.paired import how_differences, paired_difference

NAN = float('nan')


def test_numbers():
    """Student's t with 2 degrees of freedom is 4.30265 for 95 %."""
    half = 4.30265 / 3**0.5
    few = paired_difference([3, 3, 3], [2, 1, 0])
    assert (few['mean'], few['std'], few['established']) == (2, 1, False)
    assert few['interval'] == pytest.approx([2 - half, 2 + half], abs=1e-4)
    gain = paired_difference([4, 5, 6], [0, 0, 0])
    assert (gain['interval'], gain['established']) == (pytest.approx([5 - half, 5 + half], abs=1e-4), True)
    loss = paired_difference([0, 0, 0], [4, 5, 6])
    assert (loss['interval'], loss['established']) == (pytest.approx([-5 - half, -5 + half], abs=1e-4), True)


@pytest.mark.parametrize(
    ('differences', 'text'),
    [
        ([0.3, 0.8, 1.3], '+0.8 [-0.4, +2.0]'),  # 0.8 ± 0.5
        ([3.8, 5.4, 7.0], '**+5.4 [+1.4, +9.4]**'),  # 5.4 ± 1.6
        ([-1.2, -0.9, -0.6], '**-0.9 [-1.6, -0.2]**'),
        ([5.0, 5.2], '**+5.1 [+3.8, +6.4]**'),
        ([5.0, 4.0], '+4.5 [-1.9, +10.9]'),  # two seeds establish next to nothing
        ([0.0, 0.0], '+0.0 [+0.0, +0.0]'),
        ([5.4], '+5.4 (one seed)'),
        ([5.4, None], '-'),
        ([NAN], '-'),
    ],
)
def test_text(differences, text):
    assert Difference.of(paired_difference(differences, [0] * len(differences)), 1).markdown() == text
    shares = [None if d is None else d / 100 for d in differences]
    assert Difference.of(paired_difference(shares, [0] * len(shares)), 1, 100).markdown() == text


def test_what_is_unknown_stays_unknown():
    unknown = dict.fromkeys(('mean', 'std', 'interval', 'established'))
    assert paired_difference([1, NAN], [0, 0]) == paired_difference([1, 2], [None, 0]) == unknown
    assert paired_difference([0.75], [0.5]) == {**unknown, 'mean': 0.25}


def test_pairs_count():
    """Seeds that are good for both rows alike say nothing on their difference."""
    values, others = [10, 20, 30], [9, 19.1, 28.9]
    assert paired_difference(values, others)['established']
    assert not paired_difference(values, [19.1, 28.9, 9])['established']


def test_rounding_is_no_difference():
    assert paired_difference([0.4, 0.3], [0.3, 0.2])['std'] == 0
    assert paired_difference([0.1 + 0.2, 0.6], [0.3, 0.6])['established'] is False


def test_values_that_are_equal_only_by_rounding_establish_nothing():
    """42.1 and 45.3 may be 42.05 and 45.349, 42.0 and 45.2 may be 42.049 and 45.151: differences 0.001 and 0.198."""
    rounded = paired_difference([42.1, 45.3], [42.0, 45.2], step=0.1)
    half = 12.7062 * (0.1**2 / 6 / 2) ** 0.5  # two values, each with a rounding error of variance 0.1 ** 2 / 12
    assert rounded['interval'] == pytest.approx([0.1 - half, 0.1 + half], abs=1e-4)
    assert (rounded['std'], rounded['established']) == (0, False)
    assert paired_difference([42.1, 45.3], [42.0, 45.2])['established']


def test_it_is_the_paired_t_test():
    """Established where the two-sided p is below 0.05, over samples of 2 to 6 seeds."""
    random, outcomes = np.random.default_rng(0), []
    for _ in range(200):
        values, others = random.normal(1.5, 1, (2, random.integers(2, 7))) - [[0], [1.5]]
        found = paired_difference(values.tolist(), others.tolist())
        assert found['established'] == (ttest_rel(values, others).pvalue < 0.05)
        outcomes.append(found['established'])
    assert 40 < sum(outcomes) < 160


def test_captions():
    assert how_differences(1) == 'One seed: there is no interval, so no gain and no loss is established.'
    assert '95 % interval' in how_differences(3)
