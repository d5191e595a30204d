"""Directions of a turned stream, and how they become those of a narrower one."""

from __future__ import annotations

import pytest
import torch

from upvit_mm.pruning.cosines import cosines, narrowing, times


@pytest.mark.parametrize('size', [1, 2, 7, 45])
def test_rows_are_orthonormal_and_the_first_is_the_mean(size):
    rows = cosines(size)
    assert rows.dtype == torch.float64
    assert torch.allclose(rows @ rows.T, torch.eye(size, dtype=torch.float64), atol=1e-13)
    assert torch.allclose(rows[0], torch.full((size,), size**-0.5, dtype=torch.float64), atol=1e-15)


def test_gradients_go_through_rows_that_were_made_without_them():
    """Exact scores run in inference mode, whose tensors no gradient may need; rows are made once for all."""
    cosines.cache_clear()
    x = torch.ones(1, 5, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        cosines(5)
    (x @ cosines(5).T).square().sum().backward()
    assert torch.allclose(x.grad, 2 * x)


@pytest.mark.parametrize('kept', [[0], [0, 4], [0, 1, 2, 5, 8], list(range(9))])
def test_narrowing_keeps_directions_mean_and_variance(kept, tokens):
    write, read = narrowing(torch.tensor(kept), 9)
    assert write.shape == (len(kept), 9)
    assert read.shape == (9, len(kept))
    assert torch.allclose(write @ read, torch.eye(len(kept), dtype=torch.float64), atol=1e-13)
    rows = cosines(9)[kept]
    assert torch.allclose(read @ write, rows.T @ rows, atol=1e-13)  # without the directions that go
    x = tokens(2, 3, 9)
    part, narrow = x @ rows.T @ rows, x @ write.T
    assert torch.allclose(narrow.mean(-1), part.mean(-1), atol=1e-13)
    assert torch.allclose(narrow.var(-1, correction=0), part.var(-1, correction=0), atol=1e-13)
    assert torch.allclose(read.sum(dim=1), torch.ones(9, dtype=torch.float64), atol=1e-13)  # offsets of norms stay


@pytest.mark.parametrize('axis', range(3))
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_matrix_along_an_axis(tokens, axis, dtype):
    x, matrix = tokens(4, 4, 4).to(dtype), tokens(3, 4, seed=1)
    found = times(x, matrix, axis)
    letters = 'abc'
    result = letters.replace(letters[axis], 'z')
    expected = torch.einsum(f'z{letters[axis]},{letters}->{result}', matrix, x.double())
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.allclose(found.double(), expected, atol=1e-13 if dtype == torch.float64 else 1e-6)
