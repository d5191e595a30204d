"""Attention within windows of a plain ViT's grid (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upvit_mm.arch.size import Grid
from upvit_mm.models.layers.attention import Attention, scaled_attention
from upvit_mm.models.layers.fast_paths import may_hurry
from upvit_mm.models.layers.grid import units
from upvit_mm.models.layers.rotary import turned


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

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        window = min(self.window_size, grid[0]), min(self.window_size, grid[1])
        layers = (self.q, self.k, self.v, self.proj)
        # compiled, each way in which windows fit a grid would be a graph of its own; the mask fits every grid
        if window == grid or torch.compiler.is_compiling() or not may_hurry(x, *layers):
            return super().forward(x, grid)
        return self._by_region(x, grid, window)

    def _by_region(self, x: Tensor, grid: Grid, window: Grid) -> Tensor:
        """The same as with a mask, without any: the grid is cut into regions that whole windows cover.

        At most four: all windows of full size, those at the right edge, at the bottom, and in the corner. Tokens are
        put into the order of windows once, before their projections, and back after ``proj``. Nothing else is copied,
        and fused kernels that take no mask run.
        """
        waves = self._waves_of_tokens(grid, x)
        rows, parts = [], []
        for top, bottom, height in _runs(grid[0], window[0]):
            row = []
            for left, right, width in _runs(grid[1], window[1]):
                region = Region(top, bottom, left, right, (height, width))
                q, k, v = self._in_windows(x, waves, grid, region)
                parts.append((q, k, v))
                out = scaled_attention(q[:, :, self.num_prefix_tokens :], k, v, self.scale)  # (B*windows, h, L, V/h)
                row.append(region.join(self.proj(side_by_side(out))))
            rows.append(torch.cat(row, dim=2))
        patches = torch.cat(rows, dim=1).flatten(1, 2)  # (B, N, C)
        if not self.num_prefix_tokens:
            return patches
        return torch.cat([self.proj(self._of_prefix(parts, len(x))), patches], dim=1)

    def _waves_of_tokens(self, grid: Grid, x: Tensor) -> tuple[Tensor, ...]:
        """Cosines and sines of rotary positions, ``(1, P+N, K)`` each; nothing without them."""
        if self.rotary is None:
            return ()
        return tuple(wave.transpose(0, 1).flatten(1)[None] for wave in self.rotary.waves(grid, x))

    def _in_windows(
        self, x: Tensor, waves: Sequence[Tensor], grid: Grid, region: Region
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(B*windows, h, P+L, d)``; each window has the prefix tokens in front."""
        tokens = region.cut(x, grid, self.num_prefix_tokens)  # (B, windows, P+L, C)
        windows = tokens.flatten(0, 1)
        q, k, v = self.project(windows, windows)
        if waves:
            cut = (region.cut(wave.to(q.dtype), grid, self.num_prefix_tokens)[0] for wave in waves)
            cos, sin = (self.by_head(self.q, wave, wave) for wave in cut)  # (windows, h, P+L, K/h)
            q, k = (turned(t.unflatten(0, tokens.shape[:2]), cos, sin).flatten(0, 1) for t in (q, k))
        return q, k, v

    def _of_prefix(self, parts: Sequence[tuple[Tensor, Tensor, Tensor]], batch: int) -> Tensor:
        """The attention ``(B, P, V)`` of the prefix tokens to the whole grid, from what ``_in_windows`` gave.

        Heads are side by side in one matrix, zero outside each head's block. So keys and values are read where they
        are, and no second copy of them is kept for the backward pass.
        """
        prefix, heads = self.num_prefix_tokens, self.num_heads
        q = self.scale * parts[0][0].unflatten(0, (batch, -1))[:, 0, :, :prefix]  # (B, h, P, K/h)
        blocks = torch.diag_embed(q.permute(0, 3, 2, 1))  # (B, K/h, P, h, h)
        blocks = blocks.permute(0, 3, 1, 4, 2).reshape(batch, -1, heads * prefix)  # (B, K, h*P)
        logits = [side_by_side(k).unflatten(0, (batch, -1)).flatten(1, 2) @ blocks for _, k, _ in parts]
        for i, (part, (_, k, _)) in enumerate(zip(logits, parts)):
            # every window has the same prefix; it counts once, in the first window
            part.unflatten(1, (-1, k.shape[2]))[:, 0 if i else 1 :, :prefix] = -torch.inf
        weights = torch.cat(logits, dim=1).softmax(dim=1).split([part.shape[1] for part in logits], dim=1)
        out = sum(
            part.mT @ side_by_side(v).unflatten(0, (batch, -1)).flatten(1, 2) for part, (_, _, v) in zip(weights, parts)
        )  # (B, h*P, V)
        out = out.unflatten(2, (heads, -1)).unflatten(1, (heads, prefix))  # (B, h, P, h, V/h)
        return out.diagonal(dim1=1, dim2=3).transpose(2, 3).flatten(2)

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


class Region(NamedTuple):
    """A part of the grid that whole windows of one size cover; sides in tokens, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int
    window: Grid

    def cut(self, x: Tensor, grid: Grid, prefix: int) -> Tensor:
        """Tokens ``(B, P+N, c)`` of the grid -> its windows, each after the prefix tokens, ``(B, windows, P+L, c)``."""
        patches = x[:, prefix:].unflatten(1, grid)[:, self.top : self.bottom, self.left : self.right]
        patches = patches.unflatten(2, (-1, self.window[1])).unflatten(1, (-1, self.window[0])).transpose(2, 3)
        windows = patches.flatten(3, 4).flatten(1, 2)  # (B, rows, columns, l, l, c) -> (B, windows, L, c)
        if not prefix:
            return windows
        return torch.cat([x[:, None, :prefix].expand(-1, windows.shape[1], -1, -1), windows], dim=2)

    def join(self, x: Tensor) -> Tensor:
        """``(B*windows, L, c)`` -> ``(B, H', W', c)``, the map of this region."""
        counts = (self.bottom - self.top) // self.window[0], (self.right - self.left) // self.window[1]
        x = x.unflatten(1, self.window).unflatten(0, (-1, *counts))  # (B, rows, columns, l, l, c)
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _runs(length: int, unit: int) -> list[tuple[int, int, int]]:
    """Start, end and unit of the whole units of a side, and of what is left."""
    whole = length // unit * unit
    return [run for run in ((0, whole, unit), (whole, length, length - whole)) if run[0] < run[1]]


def side_by_side(x: Tensor) -> Tensor:
    """``(B, h, n, d)`` -> ``(B, n, h*d)``, a view of what ``by_head`` gave."""
    return x.transpose(1, 2).flatten(2)


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
    rows, columns = _window_counts(grid, window)
    # one question, not one for each side: compiled, every answer is a graph of its own
    if not torch.onnx.is_in_onnx_export() and rows * window[0] * columns * window[1] == grid[0] * grid[1]:
        return None
    real = _to_windows(q.new_ones(1, 1, grid[0] * grid[1], 1), grid, window)  # (windows, 1, L, 1)
    seen = F.pad(real.transpose(2, 3), (prefix, 0), value=1.0) > 0  # (windows, 1, 1, P+L)
    return seen.repeat(q.shape[0], 1, 1, 1)
