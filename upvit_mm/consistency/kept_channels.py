"""Distance between the pruned network's channels and the same channels of the dense network."""

from __future__ import annotations

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
        self._error, self._square = 0.0, 0.0

    def update(self, dense: Tensor, pruned: Tensor) -> None:
        """Add tokens ``(B, N, C1)`` and ``(B, N, len(kept))`` of the same images."""
        dense, pruned = dense[..., self.kept.to(dense.device)].double(), pruned.double()
        self._error += float((pruned - dense).square().sum())
        self._square += float(dense.square().sum())

    def compute(self) -> dict[str, float]:
        """``kept_error``."""
        return {'kept_error': (self._error / self._square) ** 0.5 if self._square else float('nan')}
