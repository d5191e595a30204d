"""Position embeddings at a grid that an ONNX graph knows only when it runs."""

from __future__ import annotations

import pytest
import torch

from upvit_mm.models.layers.pos_embed import PosEmbedResizer, bicubic_weights


@pytest.mark.parametrize('grid', [(4, 5), (3, 2), (9, 31), (2, 17), (1, 1)])
@pytest.mark.parametrize('prefix', [0, 1])
def test_matrix_products_equal_resizing(grid, prefix, distance):
    resizer, pos_embed = PosEmbedResizer((4, 5), prefix), torch.randn(1, prefix + 20, 6)
    assert distance(resizer._resize_to_any(pos_embed, grid), resizer._resize(pos_embed, grid)) < 1e-5


def test_nothing_changes_at_the_stored_grid():
    assert torch.equal(bicubic_weights(7, 7), torch.eye(7))
