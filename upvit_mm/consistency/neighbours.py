"""Whether a token has the same nearest tokens in both networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from upvit_mm.consistency.sample import MOST, SampledTokens


class MutualNeighbours:
    """Mutual k-nearest neighbours: the share of a token's nearest tokens that both networks agree on, mean over tokens.

    Huh et al. 2024 (arXiv 2405.07987, section 2), who compare whole images; here tokens of one image, nearest by cosine
    similarity, mean over images. It does not change when channels are rotated or tokens scaled, works for any two
    widths, and looks at near tokens alone, where CKA looks at the directions with the most variance. In [0, 1]: 1 = the
    same neighbours; unrelated networks reach ``k / (tokens - 1)``, at most 0.1. Of equally near tokens any may count.
    Images with fewer than 3 tokens, or whose dense tokens are all equal, are left out; NaN when none is left. Tokens of
    the pruned network that are all equal have no nearest: 0.

    Args:
        k: neighbours; with few tokens a tenth of the others, at least 1.
        max_tokens, seed: see ``SampledTokens``.
    """

    def __init__(self, k: int = 10, max_tokens: int = MOST, seed: int = 0):
        assert k >= 1, 'without neighbours there is nothing to compare'
        self.k, self._sample = k, SampledTokens(max_tokens, seed)
        self._sums: Tensor | float = 0.0  # (2,), of the shares and of the images that have one

    def update(self, dense: Tensor, pruned: Tensor) -> None:
        """Add tokens ``(B, N, C1)`` and ``(B, N, C2)`` of the same images."""
        for a, b in self._sample.pairs(dense, pruned):
            k = min(self.k, max((len(a) - 1) // 10, 1))
            (expected, there), (found, kept) = _nearest(a, k), _nearest(b, k)
            share = (expected & found).sum().double() / (k * len(a)) * kept
            self._sums = self._sums + torch.stack([share, torch.ones_like(share)]) * there

    def compute(self) -> dict[str, float]:
        """``neighbours``."""
        total, images = self._sums.tolist() if isinstance(self._sums, Tensor) else (0.0, 0.0)
        return {'neighbours': total / images if images else float('nan')}


def _nearest(tokens: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Which tokens ``(n, C)`` are among the ``k`` nearest of which, ``(n, n)`` bool; and whether they differ at all."""
    directions = F.normalize(tokens.double(), dim=1)
    similarities = directions @ directions.T
    differ = similarities.amax() - similarities.amin() > 1e-12  # NaN: not
    itself = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
    nearest = similarities.masked_fill(itself, -float('inf')).topk(k, dim=1).indices
    return torch.zeros_like(itself).scatter(1, nearest, True), differ
