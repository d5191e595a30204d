"""CKA against Gram matrices, and on cases whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from upvit_mm.consistency.cka import LinearCKA, Moments


def measured(*batches):
    cka = LinearCKA()
    for dense, pruned in batches:
        cka.update(dense, pruned)
    return cka.compute()


def gram_hsic(a, b):
    """Song et al. as it is written: n x n matrices without their diagonals."""
    n = len(a)
    p, q = (x @ x.T for x in (a, b))
    p, q = p - p.diagonal().diag(), q - q.diagonal().diag()
    ones = torch.ones(n, dtype=a.dtype)
    cross = ones @ p @ ones * (ones @ q @ ones) / ((n - 1) * (n - 2))
    return ((p @ q).trace() + cross - 2 / (n - 2) * (ones @ p @ q @ ones)) / (n * (n - 3))


def rotation(width, tokens):
    return torch.linalg.qr(tokens(1, width, width)[0]).Q


def test_moments_give_the_hsic_of_gram_matrices(tokens):
    a, b = tokens(1, 37, 5)[0] + 1, tokens(1, 37, 9, seed=1)[0]
    b[:, :5] += a
    assert Moments.of(a, b).hsic().item() == pytest.approx(gram_hsic(a, b).item(), rel=1e-10)
    joined = Moments.of(a[:11], b[:11]).joined(Moments.of(a[11:], b[11:]))
    assert joined.hsic().item() == pytest.approx(gram_hsic(a, b).item(), rel=1e-10)
    shifted = Moments.of(a + 30, b - 7).hsic().item()
    assert shifted == pytest.approx(gram_hsic(a, b).item(), rel=1e-6)


def test_both_forms_against_gram_matrices(tokens):
    dense = tokens(4, 20, 6) + tokens(4, 1, 6, seed=2)  # images differ in their means
    pruned = dense[..., :4] + tokens(4, 20, 4, seed=1)

    def ratio(dense, pruned):
        cross, first, second = (
            sum(gram_hsic(x, y) for x, y in zip(a, b)) for a, b in ((dense, pruned), (dense, dense), (pruned, pruned))
        )
        return (cross / (first * second).sqrt()).item()

    found = measured((dense, pruned))
    assert found['cka'] == pytest.approx(ratio([dense.flatten(0, 1)], [pruned.flatten(0, 1)]), rel=1e-9)
    assert found['cka_within'] == pytest.approx(ratio(dense, pruned), rel=1e-9)
    assert abs(found['cka'] - found['cka_within']) > 0.01


def test_batches_do_not_matter(tokens):
    dense, pruned = tokens(6, 15, 8), tokens(6, 15, 3, seed=1)
    whole = measured((dense, pruned))
    parts = measured(*((dense[k : k + n], pruned[k : k + n]) for k, n in ((0, 1), (1, 4), (5, 1))))
    assert parts == pytest.approx(whole, abs=1e-12)


def test_equal_rotated_scaled_and_shifted_are_one(tokens):
    dense = tokens(3, 50, 7)
    for other in (dense, 5 * dense @ rotation(7, tokens) + 100, dense.float()):
        assert measured((dense, other)) == pytest.approx({'cka': 1, 'cka_within': 1}, abs=1e-6)


def test_independent_is_about_zero_and_stays_unbiased(tokens):
    found = measured((tokens(8, 500, 6), tokens(8, 500, 4, seed=1)))
    assert all(abs(value) < 0.01 for value in found.values())
    # few tokens in wide nets, where the usual biased CKA is far above 0
    runs = [measured((tokens(2, 8, 64, seed=s), tokens(2, 8, 64, seed=1000 + s)))['cka'] for s in range(200)]
    assert abs(sum(runs) / len(runs)) < 0.02


def test_permuted_tokens_fall(tokens):
    dense = tokens(2, 200, 6)
    permuted = dense[:, torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    assert all(abs(value) < 0.1 for value in measured((dense, permuted)).values())


def test_large_common_offset_costs_no_digits(tokens):
    dense = tokens(2, 100, 6)
    pruned = dense[..., :4] + 0.5 * tokens(2, 100, 4, seed=1)
    assert measured((dense + 1e5, pruned - 3e4)) == pytest.approx(measured((dense, pruned)), abs=1e-6)


def test_where_it_is_not_defined(tokens):
    few = measured((tokens(2, 3, 5), tokens(2, 3, 5)))
    assert math.isnan(few['cka_within'])
    assert few['cka'] == pytest.approx(1)
    assert all(math.isnan(value) for value in LinearCKA().compute().values())
    constant = measured((tokens(2, 30, 5), torch.ones(2, 30, 5, dtype=torch.float64)))
    assert all(math.isnan(value) for value in constant.values())
