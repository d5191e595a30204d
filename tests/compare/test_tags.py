"""Name tags beside objects."""

from __future__ import annotations

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from upvit_mm.compare import tags
from upvit_mm.compare.tags import MOST, Tag, place_tags


@pytest.fixture
def axes() -> Axes:
    """Of a picture of 128 x 128 pixels that fills 190 x 190 on the screen."""
    panel = Figure(figsize=(1.9, 1.9), dpi=100).add_axes((0, 0, 1, 1))
    panel.set(xlim=(-0.5, 127.5), ylim=(127.5, -0.5))
    return panel


def extents(axes: Axes):
    return [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]


def tag(*box: float, text: str = '7 0.50') -> Tag:
    return Tag(box, text, 'orange')


@pytest.mark.parametrize(
    ('box', 'side'),
    [
        ((40, 40, 60, 60), 'above'),
        ((40, 1, 60, 60), 'below'),
        ((0, 1, 20, 127), 'right'),
        ((90, 1, 127, 127), 'left'),
    ],
)
def test_a_tag_is_outside_of_its_box(axes, box, side):
    assert place_tags(axes, [tag(*box)]) == 1
    (found,) = extents(axes)
    own = tags._on_screen(axes, box)
    apart = {'above': found.y0 - own.y1, 'below': own.y0 - found.y1, 'right': found.x0 - own.x1}
    apart['left'] = own.x0 - found.x1
    assert 0 < apart[side] < 8


def test_a_tag_covers_no_object_and_no_tag(axes):
    boxes = [(x, y, x + 9, y + 9) for x in (10, 24, 38, 52) for y in (10, 24, 60)]
    placed = place_tags(axes, [tag(*box) for box in boxes])
    found = extents(axes)
    assert placed == len(found)
    assert 4 <= placed < 12
    for k, extent in enumerate(found):
        assert extent.count_overlaps([tags._on_screen(axes, box) for box in boxes]) == 0
        assert extent.count_overlaps(found[k + 1 :]) == 0
        assert axes.bbox.x0 <= extent.x0 < extent.x1 <= axes.bbox.x1


def test_no_room_no_tag(axes):
    assert place_tags(axes, [tag(0, 0, 128, 128)]) == 0
    assert place_tags(axes, [tag(40, 40, 60, 60, text='')]) == 0
    assert not axes.texts


def test_a_crowd_has_no_tags(axes):
    boxes = [(10 * k, 60, 10 * k + 1, 61) for k in range(MOST + 1)]
    assert place_tags(axes, [tag(*box, text='1') for box in boxes]) == 0
    assert place_tags(axes, [tag(*box, text='1') for box in boxes[:-1]]) == MOST
