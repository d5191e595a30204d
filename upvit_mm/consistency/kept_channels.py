"""How far the pruned net's channels are from the same channels of the dense net."""

from __future__ import annotations

from torch import Tensor


class KeptChannelError:
    """``|pruned - dense[kept]| / |dense[kept]|``, Frobenius norms over all tokens of all images.

    0 for equal channels, 1 for a pruned net of zeros; no upper bound. Unlike the other measures it is tied to the
    channels' identity: fine-tuning may leave it large while the representation is as good. Stage outputs are compared
    after their norm, which runs over fewer channels in the pruned net, so even a lossless cut leaves an error.

    Args:
        kept: channels of the dense stage that the pruned one has, in order: sorted, unique, int64.
    """

    def __init__(self, kept: Tensor):
        self.kept = kept
        self._error, self._square = 0.0, 0.0

    def update(self, dense: Tensor, pruned: Tensor) -> None:
        """Take in tokens ``(B, N, C1)`` and ``(B, N, len(kept))`` of the same images."""
        dense, pruned = dense[..., self.kept.to(dense.device)].double(), pruned.double()
        self._error += float((pruned - dense).square().sum())
        self._square += float(dense.square().sum())

    def compute(self) -> dict[str, float]:
        """``kept_error``."""
        return {'kept_error': (self._error / self._square) ** 0.5 if self._square else float('nan')}
