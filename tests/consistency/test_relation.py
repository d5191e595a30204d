"""Token relations against a direct computation, and on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from upvit_mm.consistency.relation import TokenRelation


def measured(*batches, **settings):
    relation = TokenRelation(**settings)
    for dense, pruned in batches:
        relation.update(dense, pruned)
    return relation.compute()['relation']


def similarities(tokens):
    x = tokens.numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (x @ x.T)[np.triu_indices(len(x), 1)]


def test_against_numpy(tokens):
    dense = tokens(3, 20, 6)
    pruned = dense[..., :4] + 0.5 * tokens(3, 20, 4, seed=1)
    expected = [np.corrcoef(similarities(a), similarities(b))[0, 1] for a, b in zip(dense, pruned)]
    assert measured((dense, pruned)) == pytest.approx(np.mean(expected), rel=1e-10)


def test_known_cases(tokens):
    dense = tokens(2, 300, 6)
    rotated = 3 * dense @ torch.linalg.qr(tokens(1, 6, 6, seed=1)[0]).Q
    assert measured((dense, dense)) == pytest.approx(1)
    assert measured((dense, rotated)) == pytest.approx(1)
    assert measured((dense, dense.flip(1))) < 0.1
    assert abs(measured((dense, tokens(2, 300, 4, seed=1)))) < 0.05


def test_sampled_tokens_estimate_and_batches_do_not_matter(tokens):
    dense = tokens(4, 900, 5)
    pruned = dense + tokens(4, 900, 5, seed=1)
    whole, sample = measured((dense, pruned), max_tokens=900), measured((dense, pruned))
    assert sample != whole
    assert sample == pytest.approx(whole, abs=0.05)
    assert measured(*((dense[k : k + 1], pruned[k : k + 1]) for k in range(4))) == pytest.approx(sample, abs=1e-12)
    assert measured((dense, pruned), seed=1) != sample


def test_where_there_are_no_relations(tokens):
    dense, equal = tokens(1, 30, 5), torch.ones(1, 30, 5, dtype=torch.float64)
    zeros = torch.zeros(1, 30, 5)
    assert measured((dense, equal)) == measured((dense, zeros)) == 0
    assert math.isnan(measured((equal, dense)))
    assert math.isnan(measured((dense, float('nan') * dense)))
    assert math.isnan(measured((dense[:, :2], dense[:, :2])))
    assert measured((torch.cat([dense, equal]), torch.cat([dense, dense]))) == pytest.approx(1)
