"""Faults of boxes and areas."""

from __future__ import annotations

from collections import Counter

import numpy as np

from upvit_mm.data.coco.fault import MAX_LOST, SLACK, Fault, Rule, box_of, how_many
from upvit_mm.data.coco.objects import Objects

MAX_OUTSIDE = 0.2  # share of boxes that may be partly outside their picture, like those of hidden parts


def _shares(objects: Objects) -> Fault | None:
    ends = objects.boxes[:, :2] + objects.boxes[:, 2:]
    like_shares = (objects.boxes >= 0).all(axis=1) & (ends <= 1.01).all(axis=1) & (objects.boxes[:, 2:] > 0).all(axis=1)
    if not like_shares.any():
        return None
    found = f'{how_many(like_shares)} have boxes in relative coordinates ({box_of(objects, like_shares)}).'
    return Fault(found, 'Write [x, y, w, h] in pixels: x and w times the width, y and h times the height.')


def _corners_or_centres(objects: Objects) -> Fault | None:
    """Boxes in another format are partly outside their pictures, but inside them when read in their own format."""
    seen = objects.picture >= 0
    out = seen & _sticks_out(objects.boxes, objects.sizes)
    if not seen.any() or out.sum() <= MAX_LOST * seen.sum():
        return None
    boxes, sizes = objects.boxes[seen], objects.sizes[seen]
    corners = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    centres = np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]])
    for name, read, rule in (
        ('corners [x1, y1, x2, y2]', corners, 'w = x2 - x1 and h = y2 - y1'),
        ('centres [cx, cy, w, h]', centres, 'x = cx - w / 2 and y = cy - h / 2'),
    ):
        if (read[:, 2:] > 0).all() and not _sticks_out(read, sizes).any():
            found = f'boxes look like {name}: {how_many(out)} would be partly outside ({box_of(objects, out)}).'
            return Fault(found, f'Write [x, y, w, h] in pixels, with {rule}.')
    if out.sum() > MAX_OUTSIDE * seen.sum():
        found = f'{how_many(out)} have boxes that are partly outside their picture ({box_of(objects, out)}).'
        return Fault(found, 'Check that boxes are [x, y, w, h] in pixels, and that width and height fit the picture.')
    fit = (corners[:, 2:] > 0).all(axis=1) & ~_sticks_out(corners, sizes)
    if (out[seen] & fit).sum() > 0.9 * out.sum():
        found = (
            f'{how_many(out)} have boxes that look like corners [x1, y1, x2, y2]: they are partly outside their '
            f'picture ({box_of(objects, out)}), but as corners inside.'
        )
        return Fault(found, 'Look at painted ones; boxes are [x, y, w, h].', severity='note')
    return None


def _sticks_out(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    slack = np.maximum(SLACK, 0.01 * sizes)
    return ((boxes[:, :2] < -slack) | (boxes[:, :2] + boxes[:, 2:] > sizes + slack)).any(axis=1)


def _lost_boxes(objects: Objects) -> Fault | None:
    lost = {
        reason: objects.reasons[reason] & (objects.picture >= 0)
        for reason in ('without width or height', 'outside of the picture', 'of area 0')
    }
    every = np.logical_or.reduce(list(lost.values()))
    if not every.any():
        return None
    counts = ', '.join(f'{int(flags.sum())} {reason}' for reason, flags in lost.items() if flags.any())
    found = f'{how_many(every)} would be lost: boxes {counts} ({box_of(objects, every)}).'
    severity = 'loss' if every.sum() > MAX_LOST * len(objects) else 'note'
    return Fault(found, 'Correct or remove them.', severity=severity)


def _areas(objects: Objects) -> Fault | None:
    boxes = objects.boxes[:, 2] * objects.boxes[:, 3]
    wrong = objects.kept & (objects.areas > 1.5 * boxes + 10)
    if wrong.sum() <= MAX_LOST * len(objects):
        return None
    k = np.flatnonzero(wrong)[0]
    found = (
        f'{how_many(wrong)} have an area above that of their box (id {objects.rows[k]["id"]!r}: {objects.areas[k]:g} '
        f'in {boxes[k]:g}): AP by size would be wrong.'
    )
    return Fault(found, 'Write areas in square pixels.', 'judge', 'note')


def _copies(objects: Objects) -> Fault | None:
    keys = Counter((row['image_id'], row['category_id'], *row['bbox']) for row in objects.rows)
    copies = sum(keys.values()) - len(keys)
    if not copies:
        return None
    (image, category, *box), _ = keys.most_common(1)[0]
    found = f'{copies} of {len(objects)} objects are copies: image {image!r}, category {category!r}, box {box}, again.'
    severity = 'loss' if copies > 0.1 * len(objects) else 'note'
    return Fault(found, 'Remove them: AP counts each copy that is not detected as a miss.', severity=severity)


RULES: tuple[Rule, ...] = (
    _shares,
    _corners_or_centres,
    _lost_boxes,
    _copies,
    _areas,
)
