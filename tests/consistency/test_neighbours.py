"""Mutual nearest neighbours against a direct computation, and on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from upvit_mm.consistency.neighbours import MutualNeighbours


def measured(*batches, **settings):
    neighbours = MutualNeighbours(**settings)
    for dense, pruned in batches:
        neighbours.update(dense, pruned)
    return neighbours.compute()['neighbours']


def nearest(tokens, k):
    x = tokens.numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = np.argsort(-(x @ x.T), axis=1, kind='stable')
    return [[j for j in row if j != i][:k] for i, row in enumerate(near)]


@pytest.mark.parametrize(('count', 'k', 'used'), [(120, 10, 10), (45, 10, 4), (45, 3, 3), (8, 10, 1)])
def test_against_sorting(tokens, count, k, used):
    dense = tokens(3, count, 6)
    pruned = dense[..., :4] + 0.5 * tokens(3, count, 4, seed=1)
    expected = [
        len(set(mine) & set(theirs)) / used
        for a, b in zip(dense, pruned)
        for mine, theirs in zip(nearest(a, used), nearest(b, used))
    ]
    assert measured((dense, pruned), k=k) == pytest.approx(np.mean(expected), rel=1e-12)


def test_known_cases(tokens):
    dense = tokens(2, 250, 6)
    rotated = 3 * dense @ torch.linalg.qr(tokens(1, 6, 6, seed=1)[0]).Q
    assert measured((dense, dense)) == 1
    assert measured((dense, rotated)) == 1
    assert measured((dense, tokens(2, 250, 4, seed=1))) == pytest.approx(10 / 249, abs=0.02)  # chance
    # far tokens may change places as they like: only near ones count
    pairs = torch.cat([torch.eye(10), torch.eye(10) + 0.01], dim=0)[None].double()
    permuted = pairs[..., torch.randperm(10, generator=torch.Generator().manual_seed(0))]
    assert measured((pairs, permuted)) == 1


def test_sampled_tokens_and_batches(tokens):
    dense = tokens(4, 900, 5)
    pruned = dense + 0.1 * tokens(4, 900, 5, seed=1)
    sample = measured((dense, pruned))
    assert 0.4 < sample < 1
    assert measured(*((dense[k : k + 1], pruned[k : k + 1]) for k in range(4))) == pytest.approx(sample, abs=1e-12)
    assert measured((dense, pruned), seed=1) != sample


def test_where_nothing_is_near(tokens):
    dense, equal = tokens(1, 30, 5), torch.ones(1, 30, 5, dtype=torch.float64)
    assert measured((dense, equal)) == measured((dense, torch.zeros(1, 30, 5))) == 0
    assert measured((dense, float('nan') * dense)) == 0
    assert math.isnan(measured((equal, dense)))
    assert math.isnan(measured((dense[:, :2], dense[:, :2])))
    assert math.isnan(measured())
    assert measured((torch.cat([dense, equal]), torch.cat([dense, dense]))) == 1
