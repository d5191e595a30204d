"""Multi-head self-attention with free query/key and value widths (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.choices import KERNEL_WIDTHS
from upvit_mm.models.layers.fast_paths import fast_paths
from upvit_mm.models.layers.grid import map_to_tokens, tokens_to_map
from upvit_mm.models.layers.linear import Linear, joint
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
        q, k, v = self.project(x, self.source(x, grid))
        if self.rotary is not None:
            q, k = self.rotary(q, k, grid)
        return self.proj(self.mix(q, k, v, grid).transpose(1, 2).flatten(2))

    def source(self, x: Tensor, grid: Grid) -> Tensor:
        """What keys and values are made from: the tokens ``(B, P+N, C)``, or fewer ``(B, M, C)``."""
        if self.sr is None:
            return x
        return self.sr_norm(map_to_tokens(self.sr(tokens_to_map(x, grid))))

    def project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By head ``(B, h, P+N, K/h)``, ``(B, h, M, K/h)`` and ``(B, h, M, V/h)``, from tokens and their ``source``."""
        if source is x:
            q, k, v = joint((self.q, self.k, self.v), x)
        else:
            q, (k, v) = self.q(x), joint((self.k, self.v), source)
        return self.by_head(self.q, x, q), self.by_head(self.k, source, k), self.by_head(self.v, source, v)

    def queries_and_keys(self, x: Tensor, source: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """By head ``(B, h, P+N, K/h)`` and ``(B, h, M, K/h)``, from tokens and their ``source``, turned by place."""
        q, k = self.by_head(self.q, x, self.q(x)), self.by_head(self.k, source, self.k(source))
        return (q, k) if self.rotary is None else self.rotary(q, k, grid)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        """Every query attends to every key: ``(B, h, P+N, K/h)``, ``(B, h, M, K/h)``, ``(B, h, M, V/h)``."""
        return scaled_attention(q, k, v, self.scale)

    def by_head(self, layer: nn.Linear, x: Tensor, out: Tensor) -> Tensor:
        """A layer's outputs ``(B, n, h*d)`` of ``x``, ``(B, n, C)``, -> ``(B, h, n, d)``, a view."""
        # sizes of x, which other layers read too, and no width of out: the graph of an ONNX file has a node for each
        width = layer.out_features // self.num_heads  # not unflatten: see tokens_to_map
        return out.view(x.shape[0], x.shape[1], self.num_heads, width).transpose(1, 2)


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
    than for 32 (measured, docs/benchmarks.md). Between 16 and the middle of the next 16, padding does not help. The
    kernels of a GPU read 16 bytes at once; they refuse other widths than multiples of 8, or are slower.
    """
    vector = KERNEL_WIDTHS.get(device.type)
    if not fast_paths() or vector is None or (device.type == 'cpu' and width >= 16 and width % 16 <= 8):
        return width
    return -(-width // vector) * vector
