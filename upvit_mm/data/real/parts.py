"""The parts of a prepared set: what is in them, and their COCO files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from upvit_mm.files import write_text_atomically

Track = Callable[..., Any]  # wraps an iterable for a progress bar: called with ``description=`` and ``total=``
HEADER = ('part', 'pictures', 'objects', 'by class', 'left out')


@dataclass(frozen=True)
class PartCounts:
    """What a part holds.

    Attributes:
        pictures: their number.
        classes: objects by class; of a classification set, pictures by class.
        objects: number of objects; None in a classification set.
        left_out: number of objects that were left out, by reason.
    """

    pictures: int
    classes: Mapping[str, int]
    objects: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def row(self, part: str) -> tuple[str, ...]:
        """Texts under ``HEADER``."""
        counts = set(self.classes.values())
        each = f'{len(self.classes)} classes, {counts.pop()} each' if len(counts) == 1 and len(self.classes) > 1 else ''
        by_class = each or ', '.join(f'{name} {count}' for name, count in self.classes.items())
        left_out = ', '.join(f'{count} {reason}' for reason, count in self.left_out.items() if count)
        objects = '-' if self.objects is None else str(self.objects)
        return part, str(self.pictures), objects, by_class, left_out or 'none'

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def write_coco(
    folder: Path, part: str, content: Mapping[str, Any], about: str, left_out: Mapping[str, int] | None = None
) -> PartCounts:
    """Write ``annotations/instances_PART.json`` and count what is in it.

    Args:
        folder: of the set.
        part: ``'train'``, ``'val'`` or ``'test'``.
        content: ``images``, ``annotations`` and ``categories``.
        about: one line on source and licence, written into the file.
        left_out: number of objects that were left out, by reason.
    """
    whole = {'info': {'description': about}, **content}
    text = json.dumps(whole, ensure_ascii=False)
    write_text_atomically(folder / 'annotations' / f'instances_{part}.json', text)
    rows: Sequence[Mapping[str, Any]] = content['annotations']
    counts = Counter(row['category_id'] for row in rows)
    classes = {category['name']: counts[category['id']] for category in content['categories']}
    return PartCounts(len(content['images']), classes, len(rows), left_out or {})
