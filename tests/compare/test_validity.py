"""Rows of several seeds, and what consistency predicts."""

from __future__ import annotations

import math
import statistics

import pytest
from scipy.stats import spearmanr

from upvit_mm.compare.seeds import mean_over_seeds, std_over_seeds
from upvit_mm.compare.validity import ALL_STAGES, correlations, draw_validity

CKA = {'up 0': (0.9, 0.8), 'up 1': (0.8, 0.9), 'vanilla': (0.3, 0.1), 'random': (0.2, 0.2), 'zeros': (0.5, 0.4)}
ERROR = {'up 0': 0.1, 'up 1': 0.2, 'vanilla': 0.9, 'random': 0.8, 'zeros': 0.5}
AP = {'up 0': 0.31, 'up 1': 0.33, 'vanilla': 0.2, 'random': 0.1, 'zeros': 0.25, 'another': 0.9}


@pytest.fixture
def results():
    def stage(name, k):
        return {'grid': [2, 3], 'tokens': 6, 'cka': CKA[name][k], 'kept_error': ERROR[name]}

    return {name: {'64x96': {'stage0': stage(name, 0), 'stage1': stage(name, 1)}} for name in CKA}


def test_rows_of_several_seeds(results):
    groups = {'up': ['up 0', 'up 1'], 'vanilla': ['vanilla']}
    mean, std = mean_over_seeds(results, groups), std_over_seeds(results, groups)
    assert list(mean) == ['up', 'vanilla']
    stage = mean['up']['64x96']['stage0']
    assert (stage['grid'], stage['tokens']) == ([2, 3], 6)
    assert stage['cka'] == pytest.approx(0.85)
    assert std['up']['64x96']['stage0']['cka'] == pytest.approx(statistics.stdev([0.9, 0.8]))
    assert mean['vanilla'] == results['vanilla']
    assert math.isnan(std['vanilla']['64x96']['stage1']['cka'])


def test_correlations(results):
    macs = dict(zip(CKA, range(5)))
    rows = {(r['measure'], r['stage']): r for r in correlations(results, AP, '64x96', macs)}
    assert len(rows) == 2 * 3 + 1
    names = list(CKA)
    for k, stage in enumerate(('stage0', 'stage1')):
        expected = spearmanr([CKA[n][k] for n in names], [AP[n] for n in names])
        assert rows['cka', stage]['spearman'] == pytest.approx(expected.statistic)
        assert rows['cka', stage]['p'] == pytest.approx(expected.pvalue)
    means = spearmanr([sum(CKA[n]) for n in names], [AP[n] for n in names]).statistic
    assert rows['cka', ALL_STAGES]['spearman'] == pytest.approx(means)
    assert rows['kept_error', 'stage0']['spearman'] == pytest.approx(0.8)  # a lower error is better: the sign is turned
    assert rows['macs', '']['spearman'] == pytest.approx(spearmanr(range(5), [AP[n] for n in names]).statistic)
    assert {row['networks'] for row in rows.values()} == {5}
    order = [row['spearman'] for row in correlations(results, AP, '64x96', macs)]
    assert order == sorted(order, reverse=True)


def test_a_measure_that_some_lack_and_one_that_is_constant(results):
    del results['zeros']['64x96']['stage0']['kept_error']
    for found in results.values():
        found['64x96']['stage1']['cka'] = 0.5
    rows = correlations(results, AP, '64x96')
    assert {row['measure'] for row in rows} == {'cka'}
    assert rows[-1]['stage'] == 'stage1'
    assert math.isnan(rows[-1]['spearman'])


def test_mistakes(results):
    with pytest.raises(ValueError, match="'zeros' has no quality to predict; known: up 0"):
        correlations(results, {n: v for n, v in AP.items() if n != 'zeros'}, '64x96')
    with pytest.raises(ValueError, match='3 networks: a rank correlation needs at least 4'):
        correlations(dict(list(results.items())[:3]), AP, '64x96')


def test_picture(results):
    figure = draw_validity(results, AP, '64x96', 'box AP')
    panels = figure.axes
    assert [axes.get_xlabel() for axes in panels] == [
        'CKA, mean of stages, 64x96',
        'kept error, mean of stages, 64x96',
    ]
    assert {tuple(line.get_ydata()) for line in panels[0].lines} == {(AP[name],) for name in CKA}
