"""Pictures of detections."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from upvit_mm.compare.pictures import COLOURS, Detection, colours_of, draw_picture

PICTURE = np.zeros((100, 100, 3))


def test_colours_are_of_classes():
    sheet = [[Detection((0, 0, 1, 1), 'cell')], [Detection((0, 0, 1, 1), 'bud', 0.5), Detection((0, 0, 1, 1), 'cell')]]
    assert colours_of(sheet) == {'bud': COLOURS[0], 'cell': COLOURS[1]}
    many = colours_of([[Detection((0, 0, 1, 1), f'{k:02}') for k in range(12)]])
    assert (many['00'], many['09']) == (many['10'], COLOURS[9])


def test_objects_of_a_class_look_alike():
    mask = np.zeros((100, 100), dtype=bool)
    found = [
        Detection((10, 50, 30, 70), 'a', 0.5, mask),
        Detection((60, 50, 80, 70), 'b', 0.75),
    ]
    found.append(Detection((40, 20, 50, 30), 'a', 0.25))
    colours = colours_of([found])
    (axes,) = draw_picture(PICTURE, found, colours).axes
    assert [to_hex(patch.get_edgecolor()) for patch in axes.patches] == [colours[d.category] for d in found]
    assert [text.get_text() for text in axes.texts] == ['b 0.75', 'a 0.50', 'a 0.25']
    assert len(axes.images) == 2


@pytest.mark.parametrize(('score', 'texts'), [(None, []), (0.5, ['0.50'])])
def test_one_class_needs_no_name(score, texts):
    found = [Detection((40, 40, 60, 60), 'nucleus', score)]
    (axes,) = draw_picture(PICTURE, found, colours_of([found])).axes
    assert [text.get_text() for text in axes.texts] == texts


def test_lines_of_a_crowd_are_thin():
    found = [Detection((7 * k, 0, 7 * k + 3, 3), 'a') for k in range(13)]
    for some, width in ((found, 0.5), (found[1:], 0.9)):
        (axes,) = draw_picture(PICTURE, some, colours_of([found])).axes
        assert {patch.get_linewidth() for patch in axes.patches} == {width}
