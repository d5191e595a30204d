"""The objects of a COCO file as columns, and the check of the file's structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

Id = int | str
EXAMPLES = 3
KEYS = {  # list -> name of its entries, and the keys that every reader needs
    'images': ('images', ('id', 'file_name', 'width', 'height')),
    'categories': ('categories', ('id', 'name')),
    'annotations': ('objects', ('id', 'image_id', 'category_id', 'bbox', 'area')),
}
REMEDIES = {
    'area': "Write the mask's area in pixels, or w * h of the box.",
    'bbox': 'Write [x, y, w, h] in pixels: of a mask, its tight box.',
    'width': "Write the picture's size in pixels.",
    'height': "Write the picture's size in pixels.",
}


def check_structure(content: Any, path: str) -> None:
    """Refuse content without the parts of COCO's format that every reader needs.

    Raises:
        ValueError: a list or key is missing, or a value is of another type; the message has count and example.
    """

    def refuse(text: str) -> None:
        raise ValueError(f'annotation file {path!r}: {text}')

    if not isinstance(content, Mapping):
        refuse(f'holds a {type(content).__name__}, no COCO file: one object with images, annotations, categories.')
    content.setdefault('annotations', [])  # a test set without labels
    for name, (entries, keys) in KEYS.items():
        if not isinstance(content.get(name), list):
            refuse(f'{name!r} is missing or no list, so it is no COCO file; write or download it again.')
        if not content[name] and name != 'annotations':
            refuse(f'{name!r} is empty.')
        if wrong := [entry for entry in content[name] if not isinstance(entry, Mapping)]:
            refuse(f'{len(wrong)} of {len(content[name])} {entries} are no JSON objects ({wrong[0]!r}).')
        for key in keys:
            if lacking := [entry for entry in content[name] if key not in entry]:
                remedy = REMEDIES.get(key, 'Write the file again.')
                refuse(
                    f'{len(lacking)} of {len(content[name])} {entries} lack {key!r} ({_which(lacking)}), which mmdet '
                    f'reads. {remedy}'
                )
    for name, (entries, keys) in KEYS.items():
        for key, (is_good, rule) in _VALUES.items():
            if key in keys and not is_good([entry[key] for entry in content[name]]):
                wrong = [entry for entry in content[name] if not is_good([entry[key]])] or content[name]
                value = repr(wrong[0][key])[:80]
                refuse(
                    f'{len(wrong)} of {len(content[name])} {entries} have a wrong {key!r} ({_which(wrong)}: {value}): '
                    f'must be {rule}.'
                )
    _check_ids(content, refuse)


def _check_ids(content: Mapping[str, Any], refuse: Callable[[str], None]) -> None:
    for name, (entries, _) in KEYS.items():
        if len({isinstance(entry['id'], str) for entry in content[name]}) > 1:
            refuse(f'some ids of {entries} are numbers and some are text, so 1 and "1" differ. Use one type.')


def _which(entries: Sequence[Mapping[str, Any]]) -> str:
    named = [f'id {entry["id"]!r}' for entry in entries[:EXAMPLES] if 'id' in entry]
    return ', '.join(named) or 'none of them has an id'


def _of_types(*types: type) -> Callable[[list], bool]:
    return lambda values: set(map(type, values)) <= set(types)


def _numbers(values: list) -> bool:
    return _of_types(int, float)(values) and bool(np.isfinite(np.array(values, dtype=np.float64)).all())


def _ids(values: list) -> bool:
    numbers = [value for value in values if not isinstance(value, str)]
    return _numbers(numbers) and all(value == int(value) for value in numbers)


def _sides(values: list) -> bool:
    return _numbers(values) and all(value >= 1 and value == int(value) for value in values)


def _boxes(values: list) -> bool:
    return _of_types(list)(values) and set(map(len, values)) <= {4} and _numbers(list(chain.from_iterable(values)))


_VALUES: dict[str, tuple[Callable[[list], bool], str]] = {
    'id': (_ids, 'a whole number or text'),
    'image_id': (_ids, 'the id of an image'),
    'category_id': (_ids, 'the id of a category'),
    'file_name': (lambda values: _of_types(str)(values) and all(values), 'a path below the image folder'),
    'name': (lambda values: _of_types(str)(values) and all(values), 'text'),
    'width': (_sides, 'a whole number of pixels, 1 or more'),
    'height': (_sides, 'a whole number of pixels, 1 or more'),
    'bbox': (_boxes, '[x, y, w, h], four finite numbers in pixels'),
    'area': (_numbers, 'a finite number of square pixels'),
}


@dataclass(frozen=True)
class Objects:
    """The objects of a file as columns, with their pictures; made from content of the right structure.

    Attributes:
        images: the file's pictures.
        categories: the file's categories.
        rows: the file's objects.
        boxes: ``(n, 4)`` x, y, w, h in pixels.
        areas: ``(n,)`` in square pixels.
        picture: ``(n,)`` index of the object's picture in ``images``; -1 = its image_id is unknown.
        known: ``(n,)`` whether the object's category is in the file.
        crowd: ``(n,)`` whether ``iscrowd`` is set.
        ignore: ``(n,)`` whether ``ignore`` is set.
    """

    images: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    boxes: np.ndarray
    areas: np.ndarray
    picture: np.ndarray
    known: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Objects:
        rows = content['annotations']
        places = {image['id']: k for k, image in enumerate(content['images'])}
        categories = {category['id'] for category in content['categories']}
        return cls(
            content['images'],
            content['categories'],
            rows,
            np.array([row['bbox'] for row in rows], dtype=np.float64).reshape(-1, 4),
            np.array([row['area'] for row in rows], dtype=np.float64),
            np.array([places.get(row['image_id'], -1) for row in rows], dtype=np.int64),
            np.array([row['category_id'] in categories for row in rows], dtype=bool),
            np.array([bool(row.get('iscrowd')) for row in rows], dtype=bool),
            np.array([bool(row.get('ignore')) for row in rows], dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def sizes(self) -> np.ndarray:
        """``(n, 2)`` width and height in pixels of each object's picture; 0 where that is unknown."""
        sizes = [[image['width'], image['height']] for image in self.images]
        return np.array([*sizes, [0, 0]], dtype=np.float64)[self.picture]

    @cached_property
    def inside(self) -> np.ndarray:
        """``(n, 2)`` pixels of the box's width and height inside the picture."""
        start, stop = self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]
        return np.maximum(np.minimum(stop, self.sizes) - np.maximum(start, 0), 0)

    # ------------------------------------- what mmdet leaves out (CocoDataset.parse_data_info)

    @cached_property
    def reasons(self) -> dict[str, np.ndarray]:
        """Reasons why mmdet drops an object, in mmdet's order; an object may have several."""
        empty = (self.boxes[:, 2:] <= 0).any(axis=1)
        return {
            'marked with ignore': self.ignore,
            'in no picture of the file': self.picture < 0,
            'without width or height': empty,
            'outside of the picture': (self.inside == 0).any(axis=1) & ~empty,
            'of area 0': self.areas <= 0,
            'smaller than a pixel': (self.boxes[:, 2:] < 1).any(axis=1),
            'of a category that is not in the file': ~self.known,
        }

    @cached_property
    def kept(self) -> np.ndarray:
        """``(n,)`` whether mmdet keeps an object whose category the config lists."""
        return ~np.logical_or.reduce(list(self.reasons.values()))

    def left_out(self) -> dict[str, int]:
        """Number of dropped objects by the first reason."""
        counts, before = {}, np.zeros(len(self), dtype=bool)
        for reason, flags in self.reasons.items():
            if count := int((flags & ~before).sum()):
                counts[reason] = count
            before |= flags
        return counts

    def kept_by_category(self) -> dict[str, int]:
        """Objects that mmdet keeps, by the text of their category's id."""
        counts = {str(category['id']): 0 for category in self.categories}
        for k in np.flatnonzero(self.kept):
            counts[str(self.rows[k]['category_id'])] += 1
        return counts

    def crowding(self, by_class: bool = False) -> dict[str, int]:
        """Number of pictures by the number of single objects that mmdet keeps in them, without pictures of none.

        Args:
            by_class: count objects of one category, so that a picture counts once for each.
        """
        single = np.flatnonzero(self.kept & ~self.crowd)
        places = self.picture[single]
        if by_class:
            numbers = {category['id']: k for k, category in enumerate(self.categories)}
            labels = np.array([numbers[self.rows[k]['category_id']] for k in single], dtype=np.int64)
            places = places * len(numbers) + labels
        _, counts = np.unique(places, return_counts=True)
        return {str(count): int(pictures) for count, pictures in zip(*np.unique(counts, return_counts=True))}

    def pictures_with_objects(self) -> set[int]:
        """Indices of ``images``."""
        return set(np.unique(self.picture[self.picture >= 0]).tolist())
