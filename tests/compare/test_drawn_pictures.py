"""Pictures of detections."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from pycocotools.coco import COCO

from upvit_mm.compare.pictures import COLOURS, Detection, colours_of, draw_picture, ground_truth

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


def test_objects_with_and_without_masks():
    coco = COCO()
    square = [[2, 2, 6, 2, 6, 6, 2, 6]]
    row = dict(image_id=1, category_id=1, bbox=[2, 2, 4, 4], area=16, iscrowd=0)
    coco.dataset = dict(
        images=[dict(id=1, width=10, height=8)],
        categories=[dict(id=1, name='cell')],
        annotations=[dict(row, id=1, segmentation=square), dict(row, id=2), dict(row, id=3, segmentation=[])],
    )
    coco.createIndex()
    whole, *boxes = ground_truth(coco, [1])[1]
    assert (whole.box, whole.category, whole.mask.sum()) == ((2, 2, 6, 6), 'cell', 16)
    assert [(found.box, found.category, found.mask) for found in boxes] == [((2, 2, 6, 6), 'cell', None)] * 2
