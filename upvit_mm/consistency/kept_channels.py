"""Distance between the pruned network's channels and the same channels of the dense network."""

from __future__ import annotations

import torch
from torch import Tensor


class KeptChannelError:
    """``|pruned - dense[kept]| / |dense[kept]|``, Frobenius norms over all tokens of all images.

    0 for equal channels, 1 for a pruned network of zeros; no upper bound. Unlike the other measures it depends on the
    identity of channels: after fine-tuning it may be large although the representation is as good. Stage outputs are
    compared after their norm. The norm runs over fewer channels in the pruned network, so even lossless pruning leaves
    an error.

    Args:
        kept: channels of the dense stage that the pruned one has, in order: sorted, unique, int64.
    """

    def __init__(self, kept: Tensor):
        self.kept = kept
        self._sums: Tensor | float = 0.0  # (2,), squares of the error and of the dense tokens

    def update(self, dense: Tensor, pruned: Tensor) -> None:
        """Add tokens ``(B, N, C1)`` and ``(B, N, len(kept))`` of the same images."""
        self.kept = self.kept.to(dense.device)
        dense, pruned = dense[..., self.kept].double(), pruned.double()
        self._sums = self._sums + torch.stack([(pruned - dense).square().sum(), dense.square().sum()])

    def compute(self) -> dict[str, float]:
        """``kept_error``."""
        error, square = self._sums.tolist() if isinstance(self._sums, Tensor) else (0.0, 0.0)
        return {'kept_error': (error / square) ** 0.5 if square else float('nan')}
