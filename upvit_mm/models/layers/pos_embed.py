"""Position embeddings at any grid (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from upvit_mm.models.layers.grid import Grid


class PosEmbedResizer:
    """Resizes ``(1, P+N, C)`` position embeddings (bicubic, antialiased) and remembers the results.

    Only results without a gradient are kept, since those with one belong to a single training step. Writing through
    ``pos_embed.data``, as EMA hooks do, leaves no trace that could be checked: call ``clear`` after it.

    Args:
        source_grid: grid of the stored embeddings.
        num_prefix_tokens: ``P``, tokens in front that have no place on the grid.
        max_sizes: grids remembered, the longest unused goes first.
    """

    def __init__(self, source_grid: Grid, num_prefix_tokens: int, max_sizes: int = 32):
        self.source_grid = source_grid
        self.num_prefix_tokens = num_prefix_tokens
        self.max_sizes = max_sizes
        self._cache: OrderedDict[tuple, Tensor] = OrderedDict()

    def __call__(self, pos_embed: Tensor, grid: Grid) -> Tensor:
        """``(1, P+N, C)`` at ``source_grid`` -> ``(1, P+H*W, C)`` at ``grid``."""
        if torch.onnx.is_in_onnx_export():
            return self._resize_to_any(pos_embed, grid)
        if grid == self.source_grid:
            return pos_embed
        needs_grad = pos_embed.requires_grad and torch.is_grad_enabled()
        if needs_grad or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return self._resize(pos_embed, grid)
        # `_version` counts in-place changes: an optimizer step or a loaded checkpoint
        key = (grid, pos_embed.data_ptr(), pos_embed._version, pos_embed.dtype, pos_embed.device)
        if key not in self._cache:
            self._cache[key] = self._resize(pos_embed.detach(), grid)
            if len(self._cache) > self.max_sizes:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def clear(self) -> None:
        """Forget every remembered result."""
        self._cache.clear()

    def __deepcopy__(self, memo) -> PosEmbedResizer:
        return PosEmbedResizer(self.source_grid, self.num_prefix_tokens, self.max_sizes)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_cache': OrderedDict()}

    def _resize(self, pos_embed: Tensor, grid: Grid) -> Tensor:
        return resample_abs_pos_embed(
            pos_embed, list(grid), list(self.source_grid), num_prefix_tokens=self.num_prefix_tokens
        )

    def _resize_to_any(self, pos_embed: Tensor, grid: Grid) -> Tensor:
        """The same as two matrix products, for a graph in which ``grid`` is known only when it runs.

        ONNX resizes with antialiasing only since opset 18, and torch's tracing exporter not at all.
        """
        prefix, x = pos_embed[:, : self.num_prefix_tokens], pos_embed[:, self.num_prefix_tokens :]
        rows, columns = (bicubic_weights(s, t).to(x) for s, t in zip(self.source_grid, grid))
        x = columns @ x.unflatten(1, self.source_grid)  # (1, y, W, C)
        x = rows @ x.flatten(2)  # (1, H, W*C)
        return torch.cat([prefix, x.unflatten(2, (-1, pos_embed.shape[2])).flatten(1, 2)], dim=1)


def bicubic_weights(source: int, target: int) -> Tensor:
    """``(target, source)``: what each old place gives to each new one in antialiased bicubic resizing, as torch's is.

    Keys' kernel with a = -0.5, stretched by the scale when it shrinks, cut off at the edges and normalised.
    """
    step = source / torch.as_tensor(target)
    places = (torch.arange(target) + 0.5) * step
    x = (torch.arange(source) + 0.5 - places[:, None]).abs() / step.clamp(min=1)  # distances in units of the kernel
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)
