"""Position embeddings at other grids."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

from upvit_mm.models.layers.pos_embed import bicubic_weights, resize_pos_embed

GRIDS = [((4, 5), (3, 2)), ((4, 5), (9, 31)), ((4, 5), (2, 17)), ((8, 8), (1, 1)), ((14, 14), (50, 84))]


@pytest.fixture
def positions():
    """``positions(grid, prefix=1, dtype=torch.float32)``: random embeddings of 6 channels."""

    def make(grid, prefix=1, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, prefix + grid[0] * grid[1], 6, dtype=dtype, generator=generator)

    return make


@pytest.mark.parametrize(('source', 'target'), GRIDS)
@pytest.mark.parametrize('prefix', [0, 1, 2])
def test_other_grid_is_resized_as_timm_does_it_and_keeps_the_prefix(source, target, prefix, positions, distance):
    given = positions(source, prefix)
    resized = resize_pos_embed(given, source, target, prefix)
    expected = resample_abs_pos_embed(given, list(target), list(source), num_prefix_tokens=prefix)
    assert distance(resized, expected) < 1e-6
    assert torch.equal(resized[:, :prefix], given[:, :prefix])


@pytest.mark.parametrize(('source', 'target'), GRIDS)
def test_double_precision_is_not_lost(source, target, positions, distance):
    """timm resizes in float32, whatever the weights' precision; then two devices differ by 1e-7."""
    given = positions(source, dtype=torch.float64)
    image = given[:, 1:].unflatten(1, source).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=target, mode='bicubic', antialias=True).flatten(2).transpose(1, 2)
    resized = resize_pos_embed(given, source, target, 1)
    assert resized.dtype == torch.float64
    assert distance(resized[:, 1:], expected) < 1e-14


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_resized_in_single_precision(dtype, positions):
    given = positions((4, 5), dtype=dtype)
    expected = resize_pos_embed(given.float(), (4, 5), (9, 31), 1).to(dtype)
    assert torch.equal(resize_pos_embed(given, (4, 5), (9, 31), 1), expected)


def test_autocast_does_not_round(positions):
    given = positions((4, 5))
    with torch.autocast('cpu', torch.bfloat16):
        resized = resize_pos_embed(given, (4, 5), (9, 31), 1)
    assert torch.equal(resized, resize_pos_embed(given, (4, 5), (9, 31), 1))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_own_grid_is_exact(dtype, positions):
    given = positions((4, 5), dtype=dtype)
    assert resize_pos_embed(given, (4, 5), (4, 5), 1) is given
    assert torch.equal(bicubic_weights(7, 7, given), torch.eye(7, dtype=dtype))  # in a graph for any grid


def test_gradient_reaches_every_position(positions):
    given = positions((4, 4)).requires_grad_()
    resize_pos_embed(given, (4, 4), (3, 7), 1).sum().backward()
    assert given.grad.sum().item() == pytest.approx(22 * 6, rel=1e-5)  # resizing keeps a constant
    assert (given.grad > 0).all()


def test_gradient_after_inference_mode_at_the_same_grid(positions):
    given = positions((4, 4)).requires_grad_()
    with torch.inference_mode():
        resize_pos_embed(given, (4, 4), (3, 7), 1)
    resize_pos_embed(given, (4, 4), (3, 7), 1).sum().backward()
    assert given.grad is not None


def test_shapes_alone_on_the_meta_device(positions):
    assert resize_pos_embed(positions((4, 5)).to('meta'), (4, 5), (9, 31), 1).shape == (1, 1 + 9 * 31, 6)
