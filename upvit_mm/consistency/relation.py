"""Whether tokens that are similar in one network are similar in the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from upvit_mm.consistency.sample import MOST, SampledTokens


class TokenRelation:
    """Correlation of the two token-by-token matrices of cosine similarities, mean over images.

    For each image the Pearson correlation between the upper triangles of both matrices, as in representational
    similarity analysis (Kriegeskorte et al. 2008), here within an image. It does not change when channels are rotated
    or tokens scaled, and works for any two widths. 1 = the same relations, about 0 = unrelated, at least -1. A token of
    zeros has similarity 0 to all others. A pruned network with equal tokens has kept no relation: 0. Images in which
    all tokens of the dense network are equal, or with fewer than 3 tokens, are left out; NaN when none is left.

    Args:
        max_tokens, seed: see ``SampledTokens``.
    """

    def __init__(self, max_tokens: int = MOST, seed: int = 0):
        self._sample = SampledTokens(max_tokens, seed)
        self._sums: Tensor | float = 0.0  # (2,), of the correlations and of the images that have one

    def update(self, dense: Tensor, pruned: Tensor) -> None:
        """Add tokens ``(B, N, C1)`` and ``(B, N, C2)`` of the same images."""
        for a, b in self._sample.pairs(dense, pruned):
            expected, found = _relations(a), _relations(b)
            scale = expected.norm() * found.norm()
            correlation = torch.where(scale == 0, 0.0, expected @ found / scale)
            self._sums = self._sums + torch.stack([correlation, torch.ones_like(scale)]) * (expected.norm() > 0)

    def compute(self) -> dict[str, float]:
        """``relation``."""
        total, images = self._sums.tolist() if isinstance(self._sums, Tensor) else (0.0, 0.0)
        return {'relation': total / images if images else float('nan')}


def _relations(tokens: Tensor) -> Tensor:
    """Similarities of all pairs of tokens ``(n, C)``, minus their mean: ``(n (n - 1) / 2,)`` in float64."""
    directions = F.normalize(tokens.double(), dim=1)
    similarities = directions @ directions.T  # (n, n)
    rows, columns = torch.triu_indices(len(tokens), len(tokens), offset=1, device=tokens.device)
    values = similarities[rows, columns]
    values = values - values.mean()
    return torch.where(values.abs() < 1e-12, 0.0, values)  # rounding errors are not a relation
