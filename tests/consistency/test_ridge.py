"""The ridge map against a direct solution, and on cases whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from upvit_mm.consistency.kept_channels import KeptChannelError
from upvit_mm.consistency.ridge import RidgeMap


def measured(batches, fit_images, **settings):
    ridge = RidgeMap(fit_images, **settings)
    for dense, pruned in batches:
        ridge.update(dense, pruned)
    return ridge.compute()


def directly(dense, pruned, fit_images, ridge):
    """With a column of ones that is not penalised, all tokens in memory."""
    fit, rest = slice(0, fit_images), slice(fit_images, None)
    x, y = dense[fit].flatten(0, 1), F.pad(pruned[fit].flatten(0, 1), (0, 1), value=1.0)
    variance = pruned[fit].flatten(0, 1).var(dim=0, correction=0).mean()
    penalty = torch.eye(y.shape[1], dtype=y.dtype) * ridge * variance * len(y)
    penalty[-1, -1] = 0
    weight = torch.linalg.solve(y.T @ y + penalty, y.T @ x)
    x, mean = dense[rest].flatten(0, 1), x.mean(dim=0)
    mapped = F.pad(pruned[rest].flatten(0, 1), (0, 1), value=1.0) @ weight
    r2 = 1 - (x - mapped).square().sum() / (x - x.mean(dim=0)).square().sum()
    return {'cosine': F.cosine_similarity(x - mean, mapped - mean).mean().item(), 'r2': r2.item()}


def test_against_a_direct_solution(tokens):
    dense = tokens(6, 40, 7) + 3
    pruned = dense[..., :5] @ tokens(1, 5, 5, seed=2)[0] + 0.3 * tokens(6, 40, 5, seed=1) - 10
    expected = directly(dense, pruned, 3, ridge=0.05)
    assert measured([(dense, pruned)], 3, ridge=0.05) == pytest.approx(expected, rel=1e-9)
    parts = [(dense[k : k + n], pruned[k : k + n]) for k, n in ((0, 2), (2, 3), (5, 1))]  # one holds both halves
    assert measured(parts, 3, ridge=0.05) == pytest.approx(expected, rel=1e-9)


def test_known_cases(tokens):
    dense = tokens(4, 200, 6)
    mixed = dense @ tokens(1, 6, 6, seed=3)[0] + 2
    for other in (dense, mixed):
        assert measured([(dense, other)], 2) == pytest.approx({'cosine': 1, 'r2': 1}, abs=5e-3)
    unrelated = measured([(dense, tokens(4, 200, 4, seed=1))], 2)
    assert abs(unrelated['r2']) < 0.05
    assert abs(unrelated['cosine']) < 0.1
    permuted = measured([(dense, dense.flip(1))], 2)
    assert permuted['r2'] < 0.05
    half = measured([(dense, dense[..., :3])], 2)  # half of the variance is gone for good
    assert half['r2'] == pytest.approx(0.5, abs=0.05)


def test_a_map_that_fits_its_images_alone_is_found_out(tokens):
    assert measured([(tokens(2, 20, 30), tokens(2, 20, 30, seed=1))], 1)['r2'] < -0.2


def test_where_it_is_not_defined(tokens):
    dense, constant = tokens(2, 50, 4), torch.ones(2, 50, 4, dtype=torch.float64)
    assert all(math.isnan(value) for value in measured([(dense, dense)], 2).values())
    found = measured([(dense, constant)], 1)  # the mean is all that a constant can say
    assert found['r2'] == pytest.approx(0, abs=0.1)
    assert found['cosine'] == 0
    assert math.isnan(measured([(constant, dense)], 1)['r2'])


def test_kept_channel_error(tokens):
    dense, kept = tokens(3, 10, 8), torch.tensor([1, 4, 5])
    exact, error = dense[..., kept], KeptChannelError(kept)
    error.update(dense[:1], exact[:1])
    error.update(dense[1:], 1.1 * exact[1:])
    expected = (1.1 * exact[1:] - exact[1:]).norm() / exact.norm()
    assert error.compute()['kept_error'] == pytest.approx(expected.item(), rel=1e-9)
    assert math.isnan(KeptChannelError(kept).compute()['kept_error'])
