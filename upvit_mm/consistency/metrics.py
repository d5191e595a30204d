"""All measures of one stage of a pair of networks."""

from __future__ import annotations

from torch import Tensor

from upvit_mm.consistency.cka import LinearCKA
from upvit_mm.consistency.kept_channels import KeptChannelError
from upvit_mm.consistency.neighbours import MutualNeighbours
from upvit_mm.consistency.procrustes import Procrustes
from upvit_mm.consistency.relation import TokenRelation
from upvit_mm.consistency.ridge import RidgeMap

METRICS = {  # name -> title
    'cka': 'CKA',
    'cka_within': 'CKA within',
    'relation': 'relation',
    'neighbours': 'mutual k-NN',
    'procrustes': 'Procrustes',
    'cosine': 'cosine',
    'r2': 'R2',
    'kept_error': 'kept error',
}
LOWER_IS_BETTER = ('kept_error',)


class StageMetrics:
    """Every measure of ``METRICS`` on the tokens of one stage.

    Args:
        fit_images: images that fit the ridge map, see ``RidgeMap``; None leaves the map out.
        kept: see ``KeptChannelError``; None leaves it out.
        seed: seed of the random tokens of ``TokenRelation`` and ``MutualNeighbours``.
    """

    def __init__(self, fit_images: int | None = None, kept: Tensor | None = None, seed: int = 0):
        self._metrics = [LinearCKA(), TokenRelation(seed=seed), MutualNeighbours(seed=seed), Procrustes()]
        if fit_images is not None:
            self._metrics.append(RidgeMap(fit_images))
        if kept is not None:
            self._metrics.append(KeptChannelError(kept))

    def update(self, dense: Tensor, pruned: Tensor) -> None:
        """Add tokens ``(B, N, C1)`` and ``(B, N, C2)`` of the same images, on one device."""
        assert dense.shape[:2] == pruned.shape[:2], f'tokens {tuple(dense.shape)} and {tuple(pruned.shape)}'
        for metric in self._metrics:
            metric.update(dense, pruned)

    def compute(self) -> dict[str, float]:
        """Results by name of ``METRICS``; NaN where a measure is not defined."""
        return {name: value for metric in self._metrics for name, value in metric.compute().items()}
