"""Tokens as a channels-last feature map, without a copy (shape legend: ``layers/__init__.py``)."""

from torch import Tensor

from upvit_mm.arch.size import Grid


def units(length: int, unit: int) -> int:
    """How many units cover ``length``.

    Not ``-(-length // unit)``: torch's ONNX export rounds towards zero, and torch 2.4 cannot compile it for many sizes.
    """
    return (length + unit - 1) // unit


def tokens_to_map(x: Tensor, grid: Grid) -> Tensor:
    """``(B, N, C)`` -> ``(B, C, H, W)``, a view in channels-last memory when ``x`` is contiguous."""
    # not unflatten: after it torch's ONNX export takes sizes as constants
    return x.view(x.shape[0], *grid, x.shape[2]).permute(0, 3, 1, 2)


def map_to_tokens(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, N, C)``, a view when ``x`` is in channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def outgoing(x: Tensor) -> Tensor:
    """A map for code outside this package, in plain NCHW memory.

    mmcv's operators (RoIAlign, deformable convolution) read the memory of a channels-last map as if it were NCHW and
    give wrong numbers without an error. Convolutions keep the layout of their input. So a map becomes plain NCHW where
    it leaves this package.
    """
    return x.contiguous()


def grid_of(feature_map: Tensor) -> Grid:
    """``(H, W)`` of ``(B, C, H, W)``."""
    return feature_map.shape[-2], feature_map.shape[-1]
