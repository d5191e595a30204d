"""How near the tokens of two networks come when one of them is rotated."""

from __future__ import annotations

import torch
from torch import Tensor


class Procrustes:
    """Orthogonal Procrustes similarity over the tokens of all images; any two widths.

    With both networks' tokens centred and scaled to one total variance, the best rotation leaves the squared distance
    ``2 - 2 s`` (Ding et al. 2021, arXiv 2108.01661, section 2), and ``s = |A^T B|_* / (|A|_F |B|_F)``, with the nuclear
    norm above, is the similarity. It does not change when channels are rotated, when all channels are scaled by one
    factor, or when tokens are shifted. In [0, 1]; 1 = equal up to these. Unlike CKA it counts directions with little
    variance too. Few tokens for a channel let unrelated networks seem alike. Without variation in one of the networks
    it is NaN. Exact for any number of images; memory: about ``C1 C2`` numbers in float64.
    """

    def __init__(self):
        self._shift: tuple[Tensor, Tensor] | None = None
        self._count = 0
        self._sums: list[Tensor] | None = None  # of a, of b, of a b^T, of |a|^2, of |b|^2

    def update(self, dense: Tensor, pruned: Tensor) -> None:
        """Add tokens ``(B, N, C1)`` and ``(B, N, C2)`` of the same images."""
        a, b = (tokens.flatten(0, 1).double() for tokens in (dense, pruned))
        if self._shift is None:  # sums of tokens around 0 keep their digits
            self._shift = a.mean(dim=0), b.mean(dim=0)
        a, b = a - self._shift[0], b - self._shift[1]
        sums = [a.sum(dim=0), b.sum(dim=0), a.T @ b, a.square().sum(), b.square().sum()]
        self._sums = sums if self._sums is None else [old + new for old, new in zip(self._sums, sums)]
        self._count += len(a)

    def compute(self) -> dict[str, float]:
        """``procrustes``."""
        if self._sums is None:
            return {'procrustes': float('nan')}
        a, b, cross, square_a, square_b = (total / self._count for total in self._sums)
        squares, means = (square_a, square_b), (a, b)
        spread = [float(square - mean.square().sum()) for square, mean in zip(squares, means)]
        if not all(own > 1e-12 * float(square) for own, square in zip(spread, squares)):  # NaN too
            return {'procrustes': float('nan')}
        nuclear = torch.linalg.svdvals(cross - torch.outer(a, b)).sum()
        return {'procrustes': float(nuclear) / (spread[0] * spread[1]) ** 0.5}
