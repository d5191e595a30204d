"""Faults of masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from upvit_mm.data.coco.fault import MAX_LOST, SLACK, Fault, Rule, box_text, how_many
from upvit_mm.data.coco.objects import Objects

SAMPLE = 2000  # number of objects whose masks are compared with their boxes
POLYGONS = 'polygons [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels'


def _no_masks(objects: Objects) -> Fault | None:
    lacking = np.array([not row.get('segmentation') for row in objects.rows], dtype=bool)
    if not lacking.any():
        return None
    k = np.flatnonzero(lacking)[0]
    found = (
        f"{how_many(lacking)} lack 'segmentation' (id {objects.rows[k]['id']!r}), which the pipeline loads or the "
        'metric judges.'
    )
    remedy = 'Add masks; or use a detector of boxes, without with_mask=True in LoadAnnotations and segm in CocoMetric.'
    return Fault(found, remedy, 'masks', 'fatal')


def _wrong_masks(objects: Objects) -> Fault | None:
    wrong = _masks_with(objects, _mask_problem)
    if not wrong:
        return None
    found = f'{len(wrong)} of {len(objects)} masks cannot be read ({_first(objects, wrong)}).'
    return Fault(found, f'Write {POLYGONS} or RLE {{"size": [height, width], "counts": ...}}.', 'masks', 'fatal')


def _short_polygons(objects: Objects) -> Fault | None:
    wrong = _masks_with(objects, _polygon_problem)
    if not wrong:
        return None
    found = f'{len(wrong)} of {len(objects)} masks would be ignored with their objects ({_first(objects, wrong)}).'
    severity = 'loss' if len(wrong) > MAX_LOST * len(objects) else 'note'
    return Fault(found, f'Write {POLYGONS}, at least three points each.', 'masks', severity)


def _masks_with(objects: Objects, problem_of: Callable[[Any, Mapping[str, Any]], str]) -> dict[int, str]:
    """Problems by index of the object."""
    pairs = ((k, row.get('segmentation')) for k, row in enumerate(objects.rows) if objects.picture[k] >= 0)
    found = ((k, problem_of(mask, objects.images[objects.picture[k]])) for k, mask in pairs if mask)
    return {k: problem for k, problem in found if problem}


def _first(objects: Objects, problems: Mapping[int, str]) -> str:
    k, problem = next(iter(problems.items()))
    return f'id {objects.rows[k]["id"]!r}: {problem}'


def _mask_problem(mask: Any, image: Mapping[str, Any]) -> str:
    if isinstance(mask, list):
        numbers = all(isinstance(polygon, list) and _are_numbers(polygon) for polygon in mask)
        return '' if numbers else 'a polygon is not a list of numbers'
    if not isinstance(mask, Mapping) or not isinstance(mask.get('counts'), (list, str)):
        return 'neither polygons nor RLE'
    if list(mask.get('size') or ()) != [image['height'], image['width']]:
        return f'RLE of size {mask.get("size")} in a picture of height {image["height"]} and width {image["width"]}'
    return ''


def _are_numbers(values: list) -> bool:
    return set(map(type, values)) <= {int, float}


def _polygon_problem(mask: Any, image: Mapping[str, Any]) -> str:
    """mmdet leaves out polygons with an odd number of values or fewer than six, and objects with only such ones."""
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return ''
    short = [len(polygon) for polygon in mask if len(polygon) % 2 or len(polygon) < 6]
    return f'a polygon of {short[0]} numbers' if len(short) == len(mask) else ''


def _masks_beside_boxes(objects: Objects) -> Fault | None:
    """Compare boxes with masks: masks have only one format, so boxes in a wrong format do not fit them."""
    places = [k for k in np.flatnonzero(objects.kept & ~objects.crowd) if objects.rows[k].get('segmentation')]
    places = places[:: max(len(places) // SAMPLE, 1)]
    beside, looked = [], 0
    for k in places:
        if (extent := _extent(objects.rows[k]['segmentation'])) is None:
            continue
        looked += 1
        x, y, w, h = objects.boxes[k]
        slack = SLACK + 0.1 * np.array([w, h, w, h])
        outside = np.array([x, y, -x - w, -y - h]) - extent * [1, 1, -1, -1] > slack
        too_large = np.array([w, h]) > 2 * (extent[2:] - extent[:2]) + SLACK
        if outside.any() or too_large.any():
            beside.append((k, extent))
    if len(beside) <= 0.1 * looked:
        return None
    k, extent = beside[0]
    found = (
        f'{len(beside)} of {looked} masks that were checked do not fit their box (id {objects.rows[k]["id"]!r}: '
        f'mask from {extent[:2].round(1).tolist()} to {extent[2:].round(1).tolist()}, {box_text(objects.boxes[k])}).'
    )
    return Fault(found, 'Write boxes as [x, y, w, h] and polygons as x, y, x, y, ..., both in pixels.')


def _extent(mask: Any) -> np.ndarray | None:
    """Left, top, right and bottom of a mask; None when it cannot be read; another rule reports that."""
    try:
        if isinstance(mask, list):
            points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask])
            return np.concatenate([points.min(axis=0), points.max(axis=0)]).astype(np.float64)
        rle = coco_mask.frPyObjects(mask, *mask['size']) if isinstance(mask['counts'], list) else mask
        x, y, w, h = coco_mask.toBbox(rle)
        return np.array([x, y, x + w, y + h])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


RULES: tuple[Rule, ...] = (
    _masks_beside_boxes,
    _no_masks,
    _wrong_masks,
    _short_polygons,
)
