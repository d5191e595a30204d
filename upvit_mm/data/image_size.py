"""The size of pictures at the end of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from upvit_mm.data.datasets import transforms_of


def image_size(datasets: Iterable[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Largest ``(shorter, longer)`` side in pixels from the pipelines of datasets; None when they have no size.

    The last transform that sets a size counts; of several sizes, the one with most pixels.
    """
    found = None
    for dataset in datasets:
        for transform in transforms_of(dataset.get('pipeline')):
            for name in ('scale', 'scales', 'size', 'crop_size'):
                if sizes := _sizes(transform.get(name), several=name == 'scales'):
                    found = max(sizes, key=lambda size: size[0] * size[1])
    return found


def _sizes(value: Any, several: bool = False) -> list[tuple[int, int]]:
    if isinstance(value, int):
        return [(value, value)]
    if not isinstance(value, (list, tuple)):
        return []
    if len(value) == 2 and not several and all(isinstance(side, int) for side in value):
        return [(min(value), max(value))]
    return [size for inner in value for size in _sizes(inner)]
