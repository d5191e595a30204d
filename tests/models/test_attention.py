import contextlib

import pytest
import torch

from upvit_mm.models.layers import Attention, WindowedAttention, attention, linear
from upvit_mm.models.layers.attention import scaled_attention
from upvit_mm.models.layers.fast_paths import plain_paths
from upvit_mm.models.layers.rotary import Rotary


def formula(layer, x, source, seen=None, turns=None):
    """Softmax(scale * q k^T) v, head by head, with every matrix written out.

    ``seen`` (N, M) masks the logits; ``turns`` (N, K) are the angles by which queries and keys are turned.
    """
    q, k, v = layer.q(x), layer.k(source), layer.v(source)
    turns = q.new_zeros(q.shape[1:]) if turns is None else turns
    heads = []
    for q_head, k_head, v_head, angle in zip(*(t.chunk(layer.num_heads, dim=-1) for t in (q, k, v, turns))):
        if angle.any():
            q_head, k_head = turned_by_hand(q_head, angle), turned_by_hand(k_head, angle)
        logits = layer.scale * q_head @ k_head.transpose(1, 2)
        if seen is not None:
            logits = logits.masked_fill(~seen, -torch.inf)
        heads.append(logits.softmax(dim=2) @ v_head)
    return layer.proj(torch.cat(heads, dim=2))


def turned_by_hand(x, angle):
    """Channels c and c + d/2 as a complex number, times exp(i angle)."""
    pairs = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), angle).chunk(2, dim=-1)[0]
    return torch.cat([pairs.real, pairs.imag], dim=-1)


@pytest.fixture(params=['fast', 'plain'])
def path(request):
    """The test runs on the fast path, without masks, and on the plain one."""
    with plain_paths() if request.param == 'plain' else contextlib.nullcontext():
        yield request.param


@pytest.fixture
def fused_calls(monkeypatch):
    """The widths and the mask of every call of torch's fused attention."""
    calls, fused = [], torch.nn.functional.scaled_dot_product_attention

    def watch(*given, **settings):
        calls.append(({t.shape[-1] for t in given}, settings['attn_mask']))
        return fused(*given, **settings)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', watch)
    return calls


def tokens(count, channels=12):
    return torch.randn(2, count, channels, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# ----------------------------------------------------------------- free widths


@pytest.mark.parametrize(
    ('qk_dim', 'v_dim'), [(6, 15), (15, 6), (9, 9), (3, 3)], ids=['narrow', 'wide', 'equal', 'one']
)
@pytest.mark.parametrize('scale', [0.37, 2.0])
def test_any_widths_equal_the_formula(randomise, distance, qk_dim, v_dim, scale):
    layer = randomise(Attention(12, 3, qk_dim, v_dim, scale).double())
    x = tokens(20)
    assert distance(layer(x, (4, 5)), formula(layer, x, x)) < 1e-14


@pytest.mark.parametrize(
    ('qk_dim', 'v_dim', 'width'),
    [
        (2, 2, 16),
        (9, 3, 16),
        (3, 15, 16),
        (16, 16, 16),
        (20, 20, 20),
        (24, 8, 24),
        (31, 31, 32),
        (9, 41, 48),
        (64, 64, 64),
    ],
)
def test_heads_are_filled_up_to_a_width_that_the_kernel_likes(fused_calls, qk_dim, v_dim, width):
    """Every row is as on paper, and a CPU's fused kernel gets the width at which it is fast (docs/benchmarks.md)."""
    q, k, v = torch.randn(3, 2, 1, 7, 64, dtype=torch.float64)
    q, k, v = q[..., :qk_dim], k[..., :qk_dim], v[..., :v_dim]
    out = scaled_attention(q, k, v, scale=0.3)
    assert fused_calls == [({width}, None)]
    torch.testing.assert_close(out, (0.3 * q @ k.mT).softmax(-1) @ v, rtol=0, atol=1e-12)
    with plain_paths():
        torch.testing.assert_close(scaled_attention(q, k, v, scale=0.3), out, rtol=0, atol=1e-12)
    assert fused_calls[1] == ({max(qk_dim, v_dim)}, None)


@pytest.mark.parametrize(('width', 'filled'), [(9, 16), (16, 16), (20, 24), (24, 24), (33, 40)])
def test_a_gpu_gets_multiples_of_eight(width, filled):
    assert attention._kernel_width(width, torch.device('cuda')) == filled


@pytest.mark.parametrize('sr_ratio', [1, 2])
@pytest.mark.parametrize('key_bias', [True, False])
def test_one_product_of_queries_keys_and_values_equals_three(monkeypatch, randomise, sr_ratio, key_bias):
    layer = randomise(Attention(12, 2, 8, 16, 0.4, sr_ratio, key_bias=key_bias))
    x = tokens(16).float().requires_grad_()
    products, linear_product = [], torch.nn.functional.linear

    def watch(x, weight, bias):
        products.append(len(weight))
        return linear_product(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, 'linear', watch)
    results = []
    for devices in ((), ('cpu',)):
        monkeypatch.setattr(linear, 'JOINT_ON', devices)
        out = layer(x, (4, 4))
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    assert products == [8, 8, 16, 12] + ([32, 12] if sr_ratio == 1 else [8, 24, 12])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)  # the gradient of a bias of keys is 0


def test_a_hook_or_a_width_that_fits_badly_takes_three_products(monkeypatch):
    monkeypatch.setattr(linear, 'JOINT_ON', ('cpu',))
    layer, uneven, x = Attention(12, 2, 8, 16, 0.4), Attention(12, 2, 8, 12, 0.4), tokens(16).float()
    assert linear._takes_one_product([layer.q, layer.k, layer.v], x)
    assert not linear._takes_one_product([uneven.q, uneven.k, uneven.v], x)
    with plain_paths():
        assert not linear._takes_one_product([layer.q, layer.k, layer.v], x)
    seen = []
    layer.v.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    layer(x, (4, 4))
    assert seen == [(2, 16, 16)]


def test_scale_matters(randomise, distance):
    layers = [randomise(Attention(12, 3, 6, 9, scale).double()) for scale in (0.37, 0.5)]
    x = tokens(20)
    assert distance(layers[0](x, (4, 5)), layers[1](x, (4, 5))) > 0.01


@pytest.mark.parametrize('grid', [(4, 6), (5, 7), (2, 3)], ids=['fits', 'odd', 'one-cell'])
def test_spatial_reduction_shortens_keys_and_values(randomise, distance, grid):
    layer = randomise(Attention(12, 3, 6, 15, 0.4, sr_ratio=2).double())
    x = tokens(grid[0] * grid[1])
    image = x.transpose(1, 2).unflatten(2, grid)
    reduced = torch.nn.functional.conv2d(image, layer.sr.weight, layer.sr.bias, stride=2).flatten(2).transpose(1, 2)
    assert reduced.shape[1] == (grid[0] // 2) * (grid[1] // 2)
    assert distance(layer(x, grid), formula(layer, x, layer.sr_norm(reduced))) < 1e-14


# --------------------------------------------------------------------- windows


def windowed(randomise, window_size, prefix=1, **settings):
    widths = dict(embed_dims=12, num_heads=3, qk_dim=6, v_dim=15, scale=0.4) | settings
    return randomise(WindowedAttention(window_size, prefix, **widths).double())


def seen_in_window(grid, window, prefix):
    """Bool (P+N, P+N): a patch sees its window and the prefix, the prefix sees and is seen by everything."""
    row, column = torch.meshgrid(*(torch.arange(n) // window for n in grid), indexing='ij')
    cell = (row * 1000 + column).flatten()
    seen = torch.ones(prefix + len(cell), prefix + len(cell), dtype=torch.bool)
    seen[prefix:, prefix:] = cell[:, None] == cell[None, :]
    return seen


@pytest.mark.parametrize('prefix', [0, 1, 2])
@pytest.mark.parametrize(
    ('grid', 'window'), [((4, 6), 2), ((5, 7), 3), ((2, 9), 4), ((7, 3), 3), ((1, 5), 2), ((6, 6), 5), ((3, 4), 1)]
)
def test_windows_equal_global_attention_under_an_explicit_mask(
    path, fused_calls, randomise, distance, grid, window, prefix
):
    layer = windowed(randomise, window, prefix)
    x = tokens(prefix + grid[0] * grid[1]).requires_grad_()
    out, expected = layer(x, grid), formula(layer, x, x, seen_in_window(grid, window, prefix))
    assert distance(out, expected) < 1e-14
    ragged = any(side % min(side, window) for side in grid)
    assert any(mask is not None for _, mask in fused_calls) == (path == 'plain' and ragged)
    weights = torch.randn_like(out)
    gradients = [torch.autograd.grad((o * weights).sum(), x)[0] for o in (out, expected)]
    assert distance(*gradients) < 1e-13


def angles_by_hand(frequencies, grid, prefix):
    """(P+N, K): places are the centres of patches, from -1 to 1 on each side; prefix tokens have none."""
    angles = torch.zeros(prefix + grid[0] * grid[1], len(frequencies), dtype=torch.float64)
    for n in range(grid[0] * grid[1]):
        y, x = (2 * (i + 0.5) / side - 1 for i, side in zip(divmod(n, grid[1]), grid))
        angles[prefix + n] = y * frequencies[:, 0].double() + x * frequencies[:, 1].double()
    return angles


@pytest.mark.parametrize('prefix', [1, 5], ids=['class-token', 'and-registers'])
@pytest.mark.parametrize(('grid', 'window'), [((4, 6), 2), ((5, 7), 3), ((7, 3), 3), ((6, 6), 5), ((4, 5), 9)])
def test_places_in_windows_are_those_of_the_whole_grid(path, randomise, distance, grid, window, prefix):
    """Rotary positions and registers: windows hide tokens from one another, and change nothing else."""
    layer = windowed(randomise, window, prefix, qk_dim=24, rotary=Rotary(24, 3, prefix), key_bias=False)
    turns = angles_by_hand(layer.rotary.frequencies, grid, prefix)
    assert layer.rotary.frequencies.dtype == torch.float64  # of the whole layer
    x = tokens(prefix + grid[0] * grid[1]).requires_grad_()
    out, expected = layer(x, grid), formula(layer, x, x, seen_in_window(grid, window, prefix), turns)
    assert distance(out, expected) < 1e-12
    assert distance(out, formula(layer, x, x, seen_in_window(grid, window, prefix))) > 1e-3
    weights = torch.randn_like(out)
    gradients = [torch.autograd.grad((o * weights).sum(), x)[0] for o in (out, expected)]
    assert distance(*gradients) < 1e-12


@pytest.mark.parametrize('window', [7, 8, 100])
def test_window_that_covers_the_grid_is_global_attention_exactly(randomise, window):
    layer = windowed(randomise, window)
    plain = Attention(12, 3, 6, 15, 0.4).double()
    plain.load_state_dict(layer.state_dict())
    x = tokens(1 + 5 * 7)
    assert torch.equal(layer(x, (5, 7)), plain(x, (5, 7)))


def test_windows_do_not_look_at_each_other(randomise):
    layer = windowed(randomise, 2, prefix=0)
    x = tokens(4 * 4)
    changed = x.clone()
    changed[:, 0] += 1  # top left
    moved = (layer(changed, (4, 4)) - layer(x, (4, 4))).abs().amax(dim=(0, 2)).reshape(4, 4)
    assert (moved[:2, :2] > 1e-3).all()
    assert moved[2:].max() == moved[:, 2:].max() == 0
