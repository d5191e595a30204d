"""Rotary positions of queries and keys (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upvit_mm.arch.rotary import dense_frequencies
from upvit_mm.arch.size import Grid


class Rotary(nn.Module):
    """Turns pairs of channels by an angle that is linear in a token's place (arXiv 2508.10104, sec. 3.2).

    Places are the centres of patches, from -1 to 1 on each side of any grid. Prefix tokens have no place and are not
    turned. Channels c and c + d/2 of a head are a pair.

    Attributes:
        frequencies: radians per unit of ``(y, x)``, ``(K, 2)``, the same for both channels of a pair. They are a buffer
            of the state dict, because every head of a pruned network keeps other pairs.

    Args:
        qk_dim: ``K``, channels of queries and keys over all heads; even in each head.
        num_heads: ``h``.
        num_prefix_tokens: ``P``.
    """

    def __init__(self, qk_dim: int, num_heads: int, num_prefix_tokens: int):
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.num_heads = num_heads
        self.register_buffer('frequencies', dense_frequencies(qk_dim, num_heads))

    def forward(self, q: Tensor, k: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Queries and keys ``(B, h, P+N, K/h)``, turned."""
        cos, sin = self.waves(grid, q)
        return turned(q, cos, sin), turned(k, cos, sin)

    def waves(self, grid: Grid, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles, ``(h, P+N, K/h)`` each, in the dtype of ``like`` ``(B, h, P+N, K/h)``."""
        # Each frequency is 0 on one side. So the waves of a place are exact products of those of its row and column.
        sides = [self._waves_of_side(count, k, like) for k, count in enumerate(grid)]
        (cos_y, sin_y), (cos_x, sin_x) = (tuple(w.unsqueeze(1 - k) for w in pair) for k, pair in enumerate(sides))
        prefix = self.num_prefix_tokens
        cos = (cos_y * cos_x - sin_y * sin_x).flatten(0, 1)  # (N, K)
        sin = (sin_y * cos_x + cos_y * sin_x).flatten(0, 1)
        cos = torch.cat([cos.new_ones(prefix, cos.shape[1]), cos])  # (P+N, K)
        sin = torch.cat([sin.new_zeros(prefix, sin.shape[1]), sin])
        return self._by_head(cos).to(like), self._by_head(sin).to(like)

    def _waves_of_side(self, count: int, side: int, like: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(self.frequencies.dtype, torch.float32)
        if like.dtype == torch.float64:
            dtype = like.dtype
        places = torch.arange(count, dtype=dtype, device=like.device)
        places = 2 * (places + 0.5) / count - 1
        angles = places[:, None] * self.frequencies[:, side].to(dtype)  # (count, K)
        return angles.cos(), angles.sin()

    def _by_head(self, waves: Tensor) -> Tensor:
        return waves.view(waves.shape[0], self.num_heads, -1).transpose(0, 1)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``(B, h, n, d)`` by cosines and sines ``(h, n, d)``: channel c with its partner c + d/2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
