"""Procrustes similarity against scipy's solution of the rotation, and on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from upvit_mm.consistency.procrustes import Procrustes


def measured(*batches):
    procrustes = Procrustes()
    for dense, pruned in batches:
        procrustes.update(dense, pruned)
    return procrustes.compute()['procrustes']


@pytest.mark.parametrize('width', [6, 4])
def test_the_distance_that_the_best_rotation_leaves(tokens, width):
    dense = tokens(3, 20, 6) + 5
    pruned = dense[..., :width] + 0.5 * tokens(3, 20, width, seed=1)
    a, b = (x.flatten(0, 1).numpy() for x in (dense, pruned))
    a, b = (x - x.mean(axis=0) for x in (a, b))
    a, b = a / np.linalg.norm(a), np.pad(b / np.linalg.norm(b), ((0, 0), (0, 6 - width)))
    rotation, _ = orthogonal_procrustes(b, a)
    left = np.linalg.norm(b @ rotation - a) ** 2
    assert measured((dense, pruned)) == pytest.approx(1 - left / 2, rel=1e-10)


def test_known_cases(tokens):
    dense = tokens(2, 2000, 6)
    rotated = 3 * dense @ torch.linalg.qr(tokens(1, 6, 6, seed=1)[0]).Q + 7
    assert measured((dense, dense)) == pytest.approx(1)
    assert measured((dense, rotated)) == pytest.approx(1)
    assert measured((dense, tokens(2, 2000, 6, seed=2))) < 0.05
    assert measured((dense, dense[..., :3])) == pytest.approx(math.sqrt(0.5), abs=0.02)  # half of an even variance


def test_directions_of_little_variance_count(tokens):
    """One strong direction that is kept hides from CKA that the others are lost."""
    from upvit_mm.consistency.cka import LinearCKA

    scale = torch.tensor([10.0] + 15 * [1.0], dtype=torch.float64)
    dense, other = tokens(1, 3000, 16) * scale, tokens(1, 3000, 16, seed=1)
    pruned = torch.cat([dense[..., :1], other[..., 1:]], dim=-1)
    cka = LinearCKA()
    cka.update(dense, pruned)
    assert cka.compute()['cka'] > 0.99
    assert measured((dense, pruned)) == pytest.approx(100 / 115, abs=0.02)


def test_batches_do_not_matter(tokens):
    dense = tokens(4, 50, 5)
    pruned = dense + tokens(4, 50, 5, seed=1)
    single = measured(*((dense[k : k + 1], pruned[k : k + 1]) for k in range(4)))
    assert single == pytest.approx(measured((dense, pruned)), rel=1e-12)


def test_without_variation(tokens):
    dense, equal = tokens(1, 30, 5), torch.full((1, 30, 5), 3.0)
    assert math.isnan(measured((dense, equal)))
    assert math.isnan(measured((equal, dense)))
    assert math.isnan(measured((dense, float('nan') * dense)))
    assert math.isnan(measured())
