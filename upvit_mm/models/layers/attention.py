"""Multi-head self-attention with free query/key and value widths (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.models.layers.grid import map_to_tokens, tokens_to_map, units
from upvit_mm.models.layers.linear import Linear
from upvit_mm.models.layers.rotary import Rotary

SR_NORM_EPS = 1e-5  # PVTv2's spatial reduction keeps torch's default (authors' code, timm)


class Attention(nn.Module):
    """Self-attention, with PVTv2's spatial reduction of keys and values when ``sr_ratio > 1``.

    Queries, keys and values have separate Linears, so that every width can shrink separately.

    Args:
        embed_dims: ``C``.
        num_heads: ``h``.
        qk_dim: ``K``, channels of queries and keys over all heads.
        v_dim: ``V``, channels of values over all heads.
        scale: factor on the logits. It must be given, because the usual ``(K / h) ** -0.5`` is wrong after ``K`` was
            pruned: removing channels must not rescale the results of the others.
        sr_ratio: kernel and stride of the convolution before keys and values; 1 = none.
        rotary: turns queries and keys by their place; not with ``sr_ratio``.
        key_bias: whether keys have a bias.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        qk_dim: int,
        v_dim: int,
        scale: float,
        sr_ratio: int = 1,
        rotary: Rotary | None = None,
        key_bias: bool = True,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.q = Linear(embed_dims, qk_dim)
        self.k = Linear(embed_dims, qk_dim, bias=key_bias)
        self.v = Linear(embed_dims, v_dim)
        self.proj = Linear(v_dim, embed_dims)
        self.rotary = rotary
        self.sr = None
        if sr_ratio > 1:
            self.sr = nn.Conv2d(embed_dims, embed_dims, sr_ratio, stride=sr_ratio)
            self.sr.to(memory_format=torch.channels_last)
            self.sr_norm = nn.LayerNorm(embed_dims, eps=SR_NORM_EPS)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """``(B, P+N, C)`` -> ``(B, P+N, C)``; with spatial reduction there must be no prefix (``P = 0``)."""
        source = self.source(x, grid)  # (B, M, C)
        q, k = self.queries_and_keys(x, source, grid)
        out = self.mix(q, k, self.heads(self.v, source), grid)  # (B, h, P+N, V/h)
        return self.proj(out.transpose(1, 2).flatten(2))

    def source(self, x: Tensor, grid: Grid) -> Tensor:
        """What keys and values are made from: the tokens ``(B, P+N, C)``, or fewer ``(B, M, C)``."""
        if self.sr is None:
            return x
        return self.sr_norm(map_to_tokens(self.sr(tokens_to_map(x, grid))))

    def queries_and_keys(self, x: Tensor, source: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """By head ``(B, h, P+N, K/h)`` and ``(B, h, M, K/h)``, from tokens and their ``source``."""
        q, k = self.heads(self.q, x), self.heads(self.k, source)
        return (q, k) if self.rotary is None else self.rotary(q, k, grid)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        """Every query attends to every key: ``(B, h, P+N, K/h)``, ``(B, h, M, K/h)``, ``(B, h, M, V/h)``."""
        return scaled_attention(q, k, v, self.scale)

    def heads(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """A layer's outputs of ``(B, n, C)`` by head, ``(B, h, n, d)``."""
        width = layer.out_features // self.num_heads  # not unflatten: see tokens_to_map
        return layer(x).view(x.shape[0], x.shape[1], self.num_heads, width).transpose(1, 2)


class WindowedAttention(Attention):
    """Attention in which a patch attends to the patches of its own window and to the prefix (class) tokens.

    As in ViTDet (arXiv 2203.16527, sec. 3), windows do not overlap or shift. Prefix tokens attend to the whole grid,
    and the whole grid attends to them. So a window that covers the grid gives exactly global attention.

    Args:
        window_size: side of a window in tokens.
        num_prefix_tokens: ``P``.
        **kwargs: arguments of ``Attention``.
    """

    def __init__(self, window_size: int, num_prefix_tokens: int, **kwargs):
        super().__init__(**kwargs)
        self.window_size = window_size
        self.num_prefix_tokens = num_prefix_tokens

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        any_grid = torch.onnx.is_in_onnx_export()  # then windows are padded and masked, never cut to the grid
        side = self.window_size
        window = (side, side) if any_grid else (min(side, grid[0]), min(side, grid[1]))
        if window == grid and not any_grid:
            return scaled_attention(q, k, v, self.scale)
        prefix = self.num_prefix_tokens
        counts = _window_counts(grid, window)
        keys, values = (
            torch.cat([_repeat_prefix(t[:, :, :prefix], counts), _to_windows(t[:, :, prefix:], grid, window)], 2)
            for t in (k, v)
        )  # (B*windows, h, P+L, d)
        patches = scaled_attention(
            _to_windows(q[:, :, prefix:], grid, window),
            keys,
            values,
            self.scale,
            _window_mask(grid, window, prefix, q),
        )  # (B*windows, h, L, V/h)
        patches = _from_windows(patches, grid, window)  # (B, h, N, V/h)
        if not prefix:
            return patches
        return torch.cat([scaled_attention(q[:, :, :prefix], k, v, self.scale), patches], dim=2)


def scaled_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """``softmax(scale * q k^T) v`` for any two head widths.

    The fused kernels need queries, keys and values of one width, and only some widths are allowed. Zero channels do not
    change the logits or the kept outputs. So all are padded, and the N x M matrix is never stored.

    Args:
        q: ``(B, h, N, K/h)``.
        k: ``(B, h, M, K/h)``.
        v: ``(B, h, M, V/h)``.
        scale: factor on the logits.
        mask: bool, broadcast to ``(B, h, N, M)``; False = masked out.

    Returns:
        ``(B, h, N, V/h)``.
    """
    if torch.onnx.is_in_onnx_export():  # no fused kernel there; torch 2.4 cannot export the function with a scale
        logits = (scale * q) @ k.transpose(-2, -1)
        return (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=-1) @ v
    qk_dim, v_dim = q.shape[-1], v.shape[-1]
    width = _kernel_width(max(qk_dim, v_dim), q.device)
    if qk_dim < width:
        q, k = F.pad(q, (0, width - qk_dim)), F.pad(k, (0, width - qk_dim))
    if v_dim < width:
        v = F.pad(v, (0, width - v_dim))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out[..., :v_dim]


def _kernel_width(width: int, device: torch.device) -> int:
    """The width of a head at which the fused kernel is fastest.

    A CPU's kernel works in vectors of 16: it takes up to 1.9 times as long for 9 channels as for 16, and longer for 31
    than for 32 (measured, docs/benchmarks.md). Between 16 and the middle of the next 16, padding does not help.
    """
    if device.type == 'cpu' and (width < 16 or width % 16 > 8):
        return -(-width // 16) * 16
    return width


def _window_counts(grid: Grid, window: Grid) -> Grid:
    """Rows and columns of windows that cover the grid."""
    return units(grid[0], window[0]), units(grid[1], window[1])


def _to_windows(x: Tensor, grid: Grid, window: Grid) -> Tensor:
    """``(B, h, N, d)`` -> ``(B*windows, h, L, d)``; the grid is padded with zeros to whole windows."""
    rows, columns = _window_counts(grid, window)
    bottom, right = rows * window[0] - grid[0], columns * window[1] - grid[1]
    x = F.pad(x.unflatten(2, grid), (0, 0, 0, right, 0, bottom))  # (B, h, H', W', d)
    x = x.unflatten(3, (columns, window[1])).unflatten(2, (rows, window[0]))  # (B, h, rows, l, columns, l, d)
    x = x.permute(0, 2, 4, 1, 3, 5, 6)  # (B, rows, columns, h, l, l, d)
    return x.flatten(4, 5).flatten(0, 2)


def _from_windows(x: Tensor, grid: Grid, window: Grid) -> Tensor:
    """Inverse of ``_to_windows``: ``(B*windows, h, L, d)`` -> ``(B, h, N, d)``."""
    counts = _window_counts(grid, window)
    x = x.unflatten(2, window).unflatten(0, (-1, *counts))  # (B, rows, columns, h, l, l, d)
    x = x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)  # (B, h, H', W', d)
    return x[:, :, : grid[0], : grid[1]].flatten(2, 3)


def _repeat_prefix(x: Tensor, counts: Grid) -> Tensor:
    """``(B, h, P, d)`` -> ``(B*windows, h, P, d)``, the same prefix for every window of an image."""
    return x.unsqueeze(1).expand(-1, counts[0] * counts[1], -1, -1, -1).flatten(0, 1)


def _window_mask(grid: Grid, window: Grid, prefix: int, q: Tensor) -> Tensor | None:
    """Bool ``(B*windows, 1, 1, P+L)``, False at the padding; None when nothing was padded."""
    if not torch.onnx.is_in_onnx_export() and grid[0] % window[0] == 0 and grid[1] % window[1] == 0:
        return None
    real = _to_windows(q.new_ones(1, 1, grid[0] * grid[1], 1), grid, window)  # (windows, 1, L, 1)
    seen = F.pad(real.transpose(2, 3), (prefix, 0), value=1.0) > 0  # (windows, 1, 1, P+L)
    return seen.repeat(q.shape[0], 1, 1, 1)
