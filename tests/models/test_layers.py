"""The layers that have a second, faster path: linear, feed-forward, patch embedding."""

import pytest
import torch
import torch.nn.functional as F

from upvit_mm.models.layers import Mlp, PatchEmbed
from upvit_mm.models.layers.grid import map_to_tokens, tokens_to_map
from upvit_mm.models.layers.linear import Linear

# ------------------------------------------------------------------------ grid


def test_tokens_and_map_share_memory():
    x = torch.randn(2, 15, 8)
    as_map = tokens_to_map(x, (3, 5))
    assert as_map.shape == (2, 8, 3, 5)
    assert as_map.is_contiguous(memory_format=torch.channels_last)
    assert as_map.data_ptr() == map_to_tokens(as_map).data_ptr() == x.data_ptr()
    assert torch.equal(map_to_tokens(as_map), x)


# --------------------------------------------------------------- linear and mlp


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_linear_is_the_same_without_gradients(randomise, distance, dtype):
    layer = randomise(Linear(12, 7)).to(dtype)
    x = torch.randn(2, 9, 12).to(dtype)
    expected = F.linear(x, layer.weight, layer.bias)
    with torch.no_grad():
        assert distance(layer(x), expected) < 1e-6
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize('dwconv', [True, False])
def test_mlp_is_the_same_without_gradients_and_spares_its_input(randomise, distance, dwconv):
    layer = randomise(Mlp(12, 30, dwconv))
    x = torch.randn(2, 15, 12)
    before = x.clone()
    expected = layer(x, (3, 5))
    with torch.no_grad():
        for _ in range(2):
            assert distance(layer(x, (3, 5)), expected) < 1e-6
    assert torch.equal(x, before)


def test_mlp_equals_the_formula(randomise, distance):
    layer = randomise(Mlp(12, 30, dwconv=True).double())
    x = torch.randn(2, 15, 12, dtype=torch.float64)
    hidden = layer.fc1(x).transpose(1, 2).unflatten(2, (3, 5))
    hidden = F.conv2d(hidden, layer.dwconv.weight, layer.dwconv.bias, padding=1, groups=30)
    expected = layer.fc2(F.gelu(hidden.flatten(2).transpose(1, 2)))
    assert distance(layer(x, (3, 5)), expected) < 1e-14


# -------------------------------------------------------------- patch embedding


@pytest.mark.parametrize(('height', 'width'), [(32, 48), (33, 47), (16, 17), (31, 16)])
def test_incomplete_patch_is_filled_with_zeros(randomise, height, width):
    layer = randomise(PatchEmbed(3, 8, 16, 16, norm=False).double())
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    filled = F.pad(x, (0, -width % 16, 0, -height % 16))
    tokens, grid = layer(x)
    assert grid == (-(-height // 16), -(-width // 16))
    assert torch.equal(tokens, layer(filled)[0])
