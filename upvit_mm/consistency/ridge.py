"""How well a linear map recovers the dense tokens from the pruned ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class RidgeMap:
    """Ridge regression from pruned to dense tokens, fitted on some images and evaluated on others.

    The first ``fit_images`` images fit the map, with a bias, by normal equations in float64; all later ones are
    evaluated directly, so one pass over the images gives exact results. The images must be in random order. Linear
    predictivity as a measure of similarity: Kornblith et al. 2019 (arXiv 1905.00414); there it is fitted and evaluated
    on the same samples.

    - ``r2``: 1 - squared error / squared distance of the dense tokens to their mean, over all tokens and channels.
      At most 1; a constant reaches 0, and a map that overfits its images is below 0.
    - ``cosine``: between a dense token and the mapped one, both minus the dense mean of the fit; mean over tokens; in
      [-1, 1]. (Without that, a constant would already score high, because tokens have a common part.)

    With too few tokens per channel in the fit both are low for all networks. NaN when no image is left for the
    evaluation. Memory: about ``C2 (C1 + C2)`` numbers in float64.

    Args:
        fit_images: images that fit the map, at least 1; half of all.
        ridge: weight of the map's square, in units of the mean variance of the pruned channels.
    """

    def __init__(self, fit_images: int, ridge: float = 1e-4):
        assert fit_images >= 1, 'the map needs images to fit'
        assert ridge > 0, 'without it, a constant channel has no unique solution'
        self.fit_images, self.ridge = fit_images, ridge
        self._seen = 0
        self._origin: tuple[Tensor, Tensor] | None = None  # first near the means, then exactly
        self._sums: list[Tensor] | None = None  # tokens, dense, pruned, pruned x pruned, pruned x dense
        self._map: Tensor | None = None  # (C2, C1)
        self._judged: Tensor | None = None  # tokens, cosines, squared errors, squares, then the dense tokens (C1,)

    def update(self, dense: Tensor, pruned: Tensor) -> None:
        """Add tokens ``(B, N, C1)`` and ``(B, N, C2)`` of the same images."""
        left = min(max(self.fit_images - self._seen, 0), len(dense))
        self._seen += len(dense)
        if left:
            self._fit(dense[:left].flatten(0, 1).double(), pruned[:left].flatten(0, 1).double())
        if left < len(dense):
            self._judge(dense[left:].flatten(0, 1).double(), pruned[left:].flatten(0, 1).double())

    def compute(self) -> dict[str, float]:
        """``cosine`` and ``r2``."""
        if self._judged is None:
            return {'cosine': float('nan'), 'r2': float('nan')}
        count, cosine, error, square = self._judged[:4].tolist()
        spread = square - float(self._judged[4:].square().sum()) / count
        return {'cosine': cosine / count, 'r2': 1 - error / spread if spread > 0 else float('nan')}

    def _fit(self, dense: Tensor, pruned: Tensor) -> None:
        if self._origin is None:  # sums of tokens around 0 keep their digits
            self._origin = dense.mean(dim=0), pruned.mean(dim=0)
        x, y = dense - self._origin[0], pruned - self._origin[1]
        sums = [x.new_tensor(len(x)), x.sum(dim=0), y.sum(dim=0), y.T @ y, y.T @ x]
        self._sums = sums if self._sums is None else [old + new for old, new in zip(self._sums, sums)]

    def _solve(self) -> None:
        x, y, gram, cross = (total / self._sums[0] for total in self._sums[1:])
        covariance, cross = gram - torch.outer(y, y), cross - torch.outer(y, x)
        penalty = (self.ridge * covariance.diagonal().mean()).clamp_min(torch.finfo(y.dtype).tiny)
        self._map = torch.linalg.solve(covariance + penalty * torch.eye(len(y), dtype=y.dtype, device=y.device), cross)
        self._origin = self._origin[0] + x, self._origin[1] + y  # relative to the means, the map needs no bias

    def _judge(self, dense: Tensor, pruned: Tensor) -> None:
        if self._map is None:
            self._solve()
        x, mapped = dense - self._origin[0], (pruned - self._origin[1]) @ self._map
        cosine = F.cosine_similarity(x, mapped, dim=1).sum()
        figures = torch.stack([x.new_tensor(len(x)), cosine, (x - mapped).square().sum(), x.square().sum()])
        judged = torch.cat([figures, x.sum(dim=0)])
        self._judged = judged if self._judged is None else self._judged + judged
