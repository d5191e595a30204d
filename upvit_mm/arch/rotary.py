"""How fast channels of queries and keys turn with a token's place: DINOv3's rotary positions (arXiv 2508.10104)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BASE = 100.0  # of the periods (the authors' code; timm: rope_temperature)


def dense_frequencies(qk_dim: int, num_heads: int) -> Tensor:
    """Radians per unit of ``(y, x)`` of each channel of an unpruned network, ``(K, 2)`` float32.

    In a head of d channels, c and c + d/2 are a pair that turns together. The first half of the pairs turns with y, the
    other with x. In each half the periods rise from 1 towards ``BASE``; a grid is 2 units high and wide.

    Args:
        qk_dim: ``K``, channels of queries and keys over all heads; even in each head.
        num_heads: ``h``.
    """
    pairs = qk_dim // num_heads // 2
    counts = pairs - pairs // 2, pairs // 2  # y, x
    speeds = [2 * math.pi / BASE ** (torch.arange(count) / max(count, 1)) for count in counts]
    return torch.block_diag(*(s[:, None] for s in speeds)).repeat(2 * num_heads, 1)
