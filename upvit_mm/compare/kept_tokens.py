"""The kept tokens after token dropping, and how to put them back on the grid."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from upvit_mm.arch.size import Grid


class KeptTokens(NamedTuple):
    """The kept tokens of a grid.

    Attributes:
        places: ``(B, k)`` int64, sorted: indices of the places on the grid, row by row.
        source: ``(B, N)``: index of the kept token at each place of the grid; k = none, zeros.
    """

    places: Tensor
    source: Tensor

    @classmethod
    def on(cls, grid: Grid, places: Tensor, fill: str) -> KeptTokens:
        """Dropped places are empty or, with ``fill='nearest'``, have the kept token that is nearest on the grid."""
        batch, count = places.shape
        source = places.new_full((batch, grid[0] * grid[1]), count)
        source.scatter_(1, places, torch.arange(count, device=places.device).expand(batch, -1))
        if fill == 'nearest':
            for row in source:
                empty = (row == count).view(grid).cpu().numpy()
                y, x = distance_transform_edt(empty, return_distances=False, return_indices=True)
                row.copy_(row[torch.from_numpy(y * grid[1] + x).flatten().to(row.device)])
        return cls(places, source)

    def take(self, tokens: Tensor) -> Tensor:
        """The kept ones ``(B, k, C)`` of all tokens ``(B, N, C)``."""
        return take(tokens, self.places)

    def spread(self, tokens: Tensor, dropped: Tensor | None = None) -> Tensor:
        """All places of the grid ``(B, N, C)`` from the kept tokens ``(B, k, C)``.

        Args:
            tokens: the kept ones.
            dropped: ``(B, N, C)``, values for empty places; None for zeros.
        """
        spread = take(torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1), self.source)
        if dropped is None:
            return spread
        return torch.where(self.source[..., None] == tokens.shape[1], dropped, spread)


def take(tokens: Tensor, numbers: Tensor) -> Tensor:
    """``(B, n, C)`` and ``(B, k)`` -> ``(B, k, C)``."""
    return tokens.gather(1, numbers[..., None].expand(-1, -1, tokens.shape[2]))
