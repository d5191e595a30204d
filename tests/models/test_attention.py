import pytest
import torch

from upvit_mm.models.layers import Attention, WindowedAttention
from upvit_mm.models.layers.attention import scaled_attention


def formula(layer, x, source, seen=None):
    """Softmax(scale * q k^T) v, head by head, with every matrix written out; ``seen`` (N, M) masks the logits."""
    q, k, v = layer.q(x), layer.k(source), layer.v(source)
    heads = []
    for q_head, k_head, v_head in zip(*(t.chunk(layer.num_heads, dim=2) for t in (q, k, v))):
        logits = layer.scale * q_head @ k_head.transpose(1, 2)
        if seen is not None:
            logits = logits.masked_fill(~seen, -torch.inf)
        heads.append(logits.softmax(dim=2) @ v_head)
    return layer.proj(torch.cat(heads, dim=2))


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
def test_heads_are_filled_up_to_a_width_that_the_kernel_likes(monkeypatch, qk_dim, v_dim, width):
    """Every row is as on paper, and a CPU's fused kernel gets the width at which it is fast (docs/benchmarks.md)."""
    q, k, v = torch.randn(3, 2, 1, 7, 64, dtype=torch.float64)
    q, k, v = q[..., :qk_dim], k[..., :qk_dim], v[..., :v_dim]
    seen, fused = [], torch.nn.functional.scaled_dot_product_attention

    def watch(*given, **settings):
        seen.append({t.shape[-1] for t in given})
        return fused(*given, **settings)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', watch)
    out = scaled_attention(q, k, v, scale=0.3)
    assert seen == [{width}]
    torch.testing.assert_close(out, (0.3 * q @ k.mT).softmax(-1) @ v, rtol=0, atol=1e-12)


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


def windowed(randomise, window_size, prefix=1):
    widths = dict(embed_dims=12, num_heads=3, qk_dim=6, v_dim=15, scale=0.4)
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
def test_windows_equal_global_attention_under_an_explicit_mask(randomise, distance, grid, window, prefix):
    layer = windowed(randomise, window, prefix)
    x = tokens(prefix + grid[0] * grid[1]).requires_grad_()
    out, expected = layer(x, grid), formula(layer, x, x, seen_in_window(grid, window, prefix))
    assert distance(out, expected) < 1e-14
    weights = torch.randn_like(out)
    gradients = [torch.autograd.grad((o * weights).sum(), x)[0] for o in (out, expected)]
    assert distance(*gradients) < 1e-13


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
