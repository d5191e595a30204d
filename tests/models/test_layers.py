"""The layers that have a second, faster path: linear, feed-forward, patch embedding, position embedding."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from upvit_mm.models.layers import Mlp, PatchEmbed, PosEmbedResizer
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


# ----------------------------------------------------------- position embedding


@pytest.fixture
def positions(randomise):
    return randomise(torch.nn.ParameterList([torch.empty(1, 1 + 16, 6)]))[0]


@pytest.fixture
def resizer():
    return PosEmbedResizer((4, 4), num_prefix_tokens=1)


@torch.no_grad()
def test_own_grid_is_returned_as_it_is(positions, resizer):
    assert resizer(positions, (4, 4)) is positions


@torch.no_grad()
def test_other_grid_is_resized_as_timm_does_it_and_keeps_the_prefix(positions, resizer):
    resized = resizer(positions, (3, 7))
    assert resized.shape == (1, 1 + 21, 6)
    assert torch.equal(resized[:, 0], positions[:, 0])
    assert torch.equal(resized, resample_abs_pos_embed(positions, [3, 7], [4, 4], num_prefix_tokens=1))


@torch.no_grad()
def test_each_grid_is_resized_once(positions, resizer):
    first, other = resizer(positions, (3, 7)), resizer(positions, (7, 3))
    assert resizer(positions, (3, 7)) is first
    assert resizer(positions, (7, 3)) is other
    resizer.clear()
    assert resizer(positions, (3, 7)) is not first


@torch.no_grad()
def test_the_longest_unused_grid_is_forgotten(positions):
    resizer = PosEmbedResizer((4, 4), 1, max_sizes=2)
    first, second = resizer(positions, (3, 7)), resizer(positions, (7, 3))
    assert resizer(positions, (3, 7)) is first
    resizer(positions, (2, 2))
    assert resizer(positions, (3, 7)) is first
    assert resizer(positions, (7, 3)) is not second


def test_training_gets_a_gradient_and_leaves_nothing_behind(positions, resizer):
    resizer(positions, (3, 7)).sum().backward()
    assert positions.grad.sum().item() == pytest.approx(22 * 6, rel=1e-5)  # resizing keeps a constant
    assert not resizer._cache


def test_inference_tensors_are_not_kept(positions, resizer):
    with torch.inference_mode():
        resizer(positions, (3, 7))
    with torch.no_grad():
        assert not resizer(positions, (3, 7)).is_inference()


@torch.no_grad()
def test_in_place_change_is_noticed(positions, resizer):
    stale = resizer(positions, (3, 7)).clone()
    positions.mul_(2)
    assert torch.allclose(resizer(positions, (3, 7)), 2 * stale)


@torch.no_grad()
def test_dtype_has_its_own_entry(positions, resizer):
    assert resizer(positions, (3, 7)).dtype == torch.float32
    assert resizer(positions.half(), (3, 7)).dtype == torch.float16


@torch.no_grad()
def test_copies_do_not_share_what_is_remembered(positions, resizer):
    kept = resizer(positions, (3, 7))
    for other in (copy.deepcopy(resizer), pickle.loads(pickle.dumps(resizer))):
        assert not other._cache
        assert torch.equal(other(positions, (3, 7)), kept)
        other.clear()
    assert resizer(positions, (3, 7)) is kept
