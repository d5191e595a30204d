"""Name tags beside objects in a picture: where there is room, and never on an object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

SIZE = 6  # of letters, in points
GAP = 1.5  # between tag and box, in points
MOST = 12  # tags in a picture; more is a crowd, in which colours alone tell classes


class Tag(NamedTuple):
    """A text for the object in a box.

    Attributes:
        box: ``(x1, y1, x2, y2)`` in pixels of the picture.
        text: what it says; empty = no tag.
        colour: of its background.
    """

    box: tuple[float, float, float, float]
    text: str
    colour: str


def place_tags(axes: Axes, tags: Sequence[Tag]) -> int:
    """Write tags above, below, right or left of their boxes: where they cover no box, no other tag, and not the edge.

    Args:
        axes: of a picture in its final place.
        tags: one for each object, the most important first; with more than ``MOST`` none is written.

    Returns:
        The number of tags that found a place.
    """
    if len(tags) > MOST:
        return 0
    taken = [_on_screen(axes, tag.box) for tag in tags]
    placed = 0
    for tag in tags:
        for place in _places(tag.box) if tag.text else ():
            text = axes.annotate(tag.text, **place, **_style(tag.colour))
            extent = text.get_window_extent().padded(GAP - 0.5)
            if not extent.count_overlaps(taken) and _is_inside(extent, axes.bbox):
                taken.append(extent)
                placed += 1
                break
            text.remove()
    return placed


def _places(box: Sequence[float]) -> list[dict[str, Any]]:
    x1, y1, x2, y2 = box
    return [
        dict(xy=(x1, y1), xytext=(0, GAP), ha='left', va='bottom'),
        dict(xy=(x1, y2), xytext=(0, -GAP), ha='left', va='top'),
        dict(xy=(x2, y1), xytext=(GAP, 0), ha='left', va='top'),
        dict(xy=(x1, y1), xytext=(-GAP, 0), ha='right', va='top'),
    ]


def _style(colour: str) -> dict[str, Any]:
    back = dict(facecolor=colour, edgecolor='none', pad=0.5)
    return dict(textcoords='offset points', size=SIZE, color='black', bbox=back, annotation_clip=False)


def _on_screen(axes: Axes, box: Sequence[float]) -> Bbox:
    x1, y1, x2, y2 = axes.transData.transform_bbox(Bbox.from_extents(*box)).extents
    return Bbox.from_extents(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def _is_inside(inner: Bbox, outer: Bbox) -> bool:
    return bool(outer.x0 <= inner.x0 and outer.y0 <= inner.y0 and inner.x1 <= outer.x1 and inner.y1 <= outer.y1)
