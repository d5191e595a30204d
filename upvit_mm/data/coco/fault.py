"""A fault of an annotation file, and parts of its message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from upvit_mm.data.coco.objects import Id, Objects

USES = ('train', 'judge', 'masks')  # for training; for evaluation; masks are read
MAX_LOST = 0.01  # share of objects that may be lost by single mistakes: COCO's own train2017 has boxes without width
SLACK = 2.0  # pixels, in boxes that people drew
EXAMPLES = 3


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        found: the fault, the count and the total, examples.
        remedy: what to do.
        use: use of the file for which it matters: one of ``USES``, or ``'any'``.
        severity: ``'fatal'``: readers stop, or all results are wrong; ``'loss'``: mmdet continues, without some objects
            or with wrong ones; ``'note'``: only a line in the log.
    """

    found: str
    remedy: str
    use: str = 'any'
    severity: str = 'loss'


Rule = Callable[[Objects], Fault | None]


def repeated(values: Iterable[Id]) -> list[Id]:
    """Values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def some(values: Iterable[Any]) -> str:
    """The first three different values, and the number of others."""
    distinct = list(dict.fromkeys(map(repr, values)))
    more = len(distinct) - EXAMPLES
    return ', '.join(distinct[:EXAMPLES]) + (f' and {more} more' if more > 0 else '')


def how_many(flags: np.ndarray) -> str:
    """For example ``'3 of 12 objects'``."""
    return f'{int(flags.sum())} of {len(flags)} objects'


def box_of(objects: Objects, flags: np.ndarray) -> str:
    """The first of the marked objects, its box and the size of its picture."""
    k = np.flatnonzero(flags)[0]
    width, height = objects.sizes[k]
    where = f' in a picture of {width:g}x{height:g}' if objects.picture[k] >= 0 else ''
    return f'id {objects.rows[k]["id"]!r}: {box_text(objects.boxes[k])}{where}'


def box_text(box: np.ndarray) -> str:
    """For example ``'bbox [1, 2, 30, 40]'``."""
    return f'bbox [{", ".join(f"{value:g}" for value in box)}]'
