"""Images of the proxy set, as the network gets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from upvit_mm.arch.size import Size


class Batch(NamedTuple):
    """Images of the proxy set.

    Attributes:
        images: ``(B, 3, h, w)``.
        numbers: number of each image in its data set.
        labels: ``(B,)`` int64, or None where they are not known.
        sizes: ``(height, width)`` of each picture without its padding, in pixels; None = nothing is padded.
        samples: annotated samples of a detector, one for each picture, or None.
    """

    images: Tensor
    numbers: Sequence[int]
    labels: Tensor | None = None
    sizes: Sequence[Size] | None = None
    samples: Sequence[Any] | None = None

    def repeated(self, times: int) -> Batch:
        """All images ``times`` times, one whole batch after the other, without labels."""
        images = self.images.expand(times, *self.images.shape).flatten(0, 1)
        sizes = None if self.sizes is None else [*self.sizes] * times
        samples = None if self.samples is None else [*self.samples] * times
        return Batch(images, [*self.numbers] * times, None, sizes, samples)
