"""Some tokens of each image, for measures that need all pairs of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

MOST = 256  # tokens of an image
FEWEST = 3  # two tokens have one pair, which relates to nothing


class SampledTokens:
    """Draws tokens at random without repetition, for each image anew, so that batches do not matter.

    Args:
        max_tokens: tokens used per image.
        seed: seed of the drawing.
    """

    def __init__(self, max_tokens: int = MOST, seed: int = 0):
        self.max_tokens = max_tokens
        self._generator = torch.Generator().manual_seed(seed)

    def pairs(self, dense: Tensor, pruned: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same tokens ``(n, C1)`` and ``(n, C2)`` of each image in ``(B, N, C1)`` and ``(B, N, C2)``; images with
        fewer than 3 tokens are left out."""
        for a, b in zip(dense, pruned):
            drawn = torch.randperm(len(a), generator=self._generator)[: self.max_tokens]
            if len(drawn) >= FEWEST:
                drawn = drawn.to(a.device, non_blocking=True)
                yield a[drawn], b[drawn]
