"""Image or feature map to tokens (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.models.layers.grid import map_to_tokens, units

NORM_EPS = 1e-5  # PVTv2's patch embedding keeps torch's default, unlike its blocks (authors' code, timm)


class PatchEmbed(nn.Module):
    """A strided convolution, then LayerNorm over channels if ``norm``.

    PVTv2 overlaps its patches (kernel 7 or 3, padded by half); DeiT does not (kernel = stride).

    Args:
        in_channels: channels of the input map.
        embed_dims: ``C``, channels of the tokens.
        kernel_size: side of the patch in pixels of the input map.
        stride: step between patches in pixels of the input map.
        norm: whether a LayerNorm follows.
    """

    def __init__(self, in_channels: int, embed_dims: int, kernel_size: int, stride: int, norm: bool):
        super().__init__()
        self.overlaps = kernel_size > stride
        padding = kernel_size // 2 if self.overlaps else 0
        self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(embed_dims, eps=NORM_EPS) if norm else nn.Identity()
        if in_channels > 4:  # an RGB kernel is faster unchanged
            self.proj.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """``(B, c, y, x)`` -> tokens ``(B, N, C)`` and their grid ``(H, W)``, sides rounded up."""
        tokens, grid = self.project(x)
        return self.norm(tokens), grid

    def project(self, x: Tensor) -> tuple[Tensor, Grid]:
        """The same before the norm."""
        if not self.overlaps:
            # the stride is the kernel's side; torch 2.4 would compile a number kept in self as a variable
            sides = zip(x.shape[-2:], self.proj.weight.shape[-2:])
            bottom, right = (units(n, side) * side - n for n, side in sides)
            # an incomplete patch is padded with zeros, as in the overlapping case; an ONNX file works for any size
            if bottom > 0 or right > 0 or torch.onnx.is_in_onnx_export():
                x = nn.functional.pad(x, (0, right, 0, bottom))
        x = self.proj(x)  # (B, C, H, W)
        grid = (x.shape[-2], x.shape[-1])
        return map_to_tokens(x), grid
