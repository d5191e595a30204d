"""Linear CKA over tokens, from moments: exact for any number of images, in constant memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MIN_SAMPLES = 4  # the unbiased HSIC divides by n (n - 3)


class Moments(NamedTuple):
    """Moments of ``n`` paired samples ``a_i`` and ``b_i``, for the unbiased HSIC of two linear kernels.

    Attributes:
        n: number of samples.
        sum_a, sum_b: ``(Ca,)``, ``(Cb,)``.
        cross: sum of ``a_i b_i^T``, ``(Ca, Cb)``.
        square_a, square_b: sums of ``|a_i|^2`` and of ``|b_i|^2``.
        a_by_b, b_by_a: sums of ``a_i |b_i|^2``, ``(Ca,)``, and of ``b_i |a_i|^2``, ``(Cb,)``.
        squares: sum of ``|a_i|^2 |b_i|^2``.
    """

    n: int
    sum_a: Tensor
    sum_b: Tensor
    cross: Tensor
    square_a: Tensor
    square_b: Tensor
    a_by_b: Tensor
    b_by_a: Tensor
    squares: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Moments:
        """Moments of samples ``(n, Ca)`` and ``(n, Cb)``, float64."""
        norm_a, norm_b = a.square().sum(dim=1), b.square().sum(dim=1)  # (n,)
        sums = a.sum(dim=0), b.sum(dim=0), a.T @ b, norm_a.sum(), norm_b.sum()
        return cls(len(a), *sums, a.T @ norm_b, b.T @ norm_a, norm_a @ norm_b)

    def joined(self, other: Moments) -> Moments:
        """Moments of the samples of both."""
        return Moments(*(mine + theirs for mine, theirs in zip(self, other)))

    def hsic(self) -> Tensor:
        """Unbiased HSIC (Song et al. 2012, JMLR 13: "Feature selection via dependence maximization").

        With Gram matrices ``K = A A^T`` and ``L = B B^T`` with zero diagonals it is ``[tr(K L) + 1'K1 1'L1 /
        ((n-1)(n-2)) - 2 1'K L 1 / (n-2)] / (n (n-3))``; each term is a polynomial in these moments, so no n x n matrix
        is needed.
        """
        n = self.n
        trace = self.cross.square().sum() - self.squares
        sums = (self.sum_a.square().sum() - self.square_a) * (self.sum_b.square().sum() - self.square_b)
        rows = self.sum_a @ self.cross @ self.sum_b - self.sum_a @ self.a_by_b - self.sum_b @ self.b_by_a + self.squares
        return (trace + sums / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


class LinearCKA:
    """Centred kernel alignment with linear kernels; samples are tokens, any two widths.

    ``HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b))``, where each HSIC is the unbiased estimate, summed over minibatches
    before the division (Nguyen et al. 2021, arXiv 2010.15327). It does not change when channels are rotated, when all
    channels are scaled by one factor, or when tokens are shifted. Two sizes of minibatch, both independent of how
    images come in batches:

    - ``cka``: one minibatch holds every token of every image. The moments above are sums over batches. So this largest
      minibatch, which has the least noise, costs no more than a smaller one.
    - ``cka_within``: every image is a minibatch, so only differences between tokens of one image count, not those
      between images.

    Both are 1 for equal representations and about 0 for unrelated ones. An unbiased estimate may be a little outside
    [0, 1]. Without variation in one of the networks, or with fewer than 4 tokens, it is NaN.

    Memory: about ``2 (C1 + C2)^2`` numbers in float64.
    """

    def __init__(self):
        self._shift: tuple[Tensor, Tensor] | None = None
        self._all: list[Moments] | None = None  # of (dense, pruned), (dense, dense), (pruned, pruned)
        self._within: Tensor | float = 0.0  # (3,), the same three

    def update(self, dense: Tensor, pruned: Tensor) -> None:
        """Add tokens ``(B, N, C1)`` and ``(B, N, C2)`` of the same images."""
        if self._shift is None:  # HSIC does not change with it, and float64 keeps more digits
            self._shift = tuple(tokens.double().mean(dim=(0, 1)) for tokens in (dense, pruned))
        for a, b in zip(dense.double() - self._shift[0], pruned.double() - self._shift[1]):
            image = [Moments.of(a, b), Moments.of(a, a), Moments.of(b, b)]
            if len(a) >= MIN_SAMPLES:
                self._within = self._within + torch.stack([moments.hsic() for moments in image])
            self._all = image if self._all is None else [x.joined(y) for x, y in zip(self._all, image)]

    def compute(self) -> dict[str, float]:
        """``cka`` and ``cka_within``."""
        nothing = torch.full((3,), float('nan'))
        enough = self._all is not None and self._all[0].n >= MIN_SAMPLES
        every = torch.stack([moments.hsic() for moments in self._all]) if enough else nothing
        within = self._within if isinstance(self._within, Tensor) else nothing
        return {'cka': _ratio(every), 'cka_within': _ratio(within)}


def _ratio(hsic: Tensor) -> float:
    cross, dense, pruned = hsic.tolist()
    return cross / (dense * pruned) ** 0.5 if dense > 0 and pruned > 0 else float('nan')
