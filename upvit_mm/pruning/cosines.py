"""The directions of a turned stream (``stream_axes.py``): rows of the cosine matrix of its size."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # made once for all; no gradient goes through a tensor of inference mode
def cosines(size: int) -> Tensor:
    """The orthonormal cosine matrix (DCT-II), ``(size, size)`` float64: direction k is row k; row 0 is the mean."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi * k * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def narrowing(kept: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How a turned stream of ``size`` channels becomes one of ``len(kept)``.

    Args:
        kept: directions that stay, sorted; the first is 0, the mean.
        size: channels of the turned network.

    Returns:
        ``write`` ``(len(kept), size)`` from the left for what is written to the stream, and ``read`` ``(size,
        len(kept))`` from the right for what reads it; float64.
    """
    return _narrowing(tuple(kept.tolist()), size)


@functools.lru_cache(maxsize=4)  # a repair asks for the same for every batch
@torch.inference_mode(False)
def _narrowing(kept: tuple[int, ...], size: int) -> tuple[Tensor, Tensor]:
    few, many = cosines(len(kept)), cosines(size)[list(kept)]
    share = math.sqrt(len(kept) / size)
    return share * few.T @ many, many.T @ few / share


def times(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """``matrix`` applied along an axis of a tensor, in the tensor's dtype."""
    matrix = matrix.to(tensor.device)
    return torch.tensordot(matrix, tensor.double(), dims=([1], [axis])).movedim(0, axis).to(tensor).contiguous()
