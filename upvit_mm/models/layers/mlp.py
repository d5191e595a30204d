"""Feed-forward networks (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.models.layers.depthwise import depthwise_gelu, runs_fused
from upvit_mm.models.layers.fast_paths import fast_paths, in_plain_inference
from upvit_mm.models.layers.grid import map_to_tokens, tokens_to_map
from upvit_mm.models.layers.linear import Linear


class Mlp(nn.Module):
    """``fc2(gelu(dwconv(fc1(x))))``; the depth-wise 3x3 convolution is PVTv2's (arXiv 2106.13797, sec. 3.2).

    Args:
        embed_dims: ``C``.
        hidden_dims: ``F``.
        dwconv: whether there is a depth-wise convolution.
    """

    def __init__(self, embed_dims: int, hidden_dims: int, dwconv: bool):
        super().__init__()
        self.fc1 = Linear(embed_dims, hidden_dims)
        self.dwconv = None
        if dwconv:
            self.dwconv = nn.Conv2d(hidden_dims, hidden_dims, 3, padding=1, groups=hidden_dims)
            self.dwconv.to(memory_format=torch.channels_last)
        self.act = Gelu()
        self.fc2 = Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """``(B, P+N, C)`` -> ``(B, P+N, C)``; with ``dwconv`` there must be no prefix (``P = 0``)."""
        x = self.fc1(x)  # (B, P+N, F)
        if self.dwconv is not None:
            if runs_fused(x, self.dwconv, self.act):
                return self.fc2(depthwise_gelu(x, self.dwconv, grid))
            x = map_to_tokens(self.dwconv(tokens_to_map(x, grid)))
        return self.fc2(self.act(x))


class SwiGlu(nn.Module):
    """``fc2(silu(gate(x)) * fc1(x))`` (arXiv 2002.05202, eq. 6, with biases).

    Args:
        embed_dims: ``C``.
        hidden_dims: ``F``.
    """

    dwconv = None

    def __init__(self, embed_dims: int, hidden_dims: int):
        super().__init__()
        self.gate = Linear(embed_dims, hidden_dims)
        self.fc1 = Linear(embed_dims, hidden_dims)
        self.fc2 = Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """``(B, P+N, C)`` -> ``(B, P+N, C)``."""
        return self.fc2(F.silu(self.gate(x)) * self.fc1(x))


class Gelu(nn.Module):
    """Exact GELU, in place where that is safe: outside autograd, tracing and compilation.

    At 800x1344 the hidden map of PVTv2's first stage takes 137 MB; writing a second one of that size takes more time
    than the function itself.

    Note:
        Without gradients a hook that keeps the output of ``fc1`` or ``dwconv`` must clone it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.gelu_(x) if fast_paths() and in_plain_inference() else F.gelu(x)
