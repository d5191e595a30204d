"""Pictures of detections."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from pycocotools.coco import COCO

from upvit_mm.compare.pictures import COLOURS, Detection, Sheet, colours_of, draw_picture, ground_truth

PICTURE = np.zeros((100, 100, 3))


def test_colours_are_of_classes():
    sheet = [[Detection((0, 0, 1, 1), 'cell')], [Detection((0, 0, 1, 1), 'bud', 0.5), Detection((0, 0, 1, 1), 'cell')]]
    assert colours_of(sheet) == {'bud': COLOURS[0], 'cell': COLOURS[1]}
    many = colours_of([[Detection((0, 0, 1, 1), f'{k:02}') for k in range(12)]])
    assert (many['00'], many['09']) == (many['10'], COLOURS[9])


def test_objects_of_a_class_look_alike():
    mask = np.zeros((100, 100), dtype=bool)
    mask[50:70, 10:30] = True
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


def test_a_crowd_of_masks_is_one_layer():
    """A layer for each of 300 masks of a large picture would fill the memory."""
    masks = np.zeros((3, 40, 60), dtype=bool)
    masks[0, 5:15, 5:15] = masks[1, 10:20, 10:20] = masks[2, 30:35, 40:50] = True
    found = [Detection((5, 5, 15, 15), name, 0.5, mask) for name, mask in zip('aba', masks)]
    colours = {'a': '#ff0000', 'b': '#0000ff'}
    (axes,) = draw_picture(np.zeros((40, 60, 3), np.uint8), found, colours).axes
    _, layer = (image.get_array() for image in axes.images)
    assert layer.shape == (40, 60, 4)
    assert (layer[..., 3] > 0).sum() == masks.any(axis=0).sum()
    assert layer[6, 6].tolist() == [255, 0, 0, 89]
    assert layer[12, 12].tolist() == [0, 0, 255, 89]  # the last of two
    assert layer[32, 45].tolist() == [255, 0, 0, 89]


def test_a_sheet_has_a_row_for_each_picture_and_a_title_for_each_column():
    pictures = {7: np.zeros((40, 60, 3), np.uint8), 9: np.zeros((60, 60, 3), np.uint8)}
    box = Detection((5, 5, 15, 15), 'cell', 0.5)
    sheet = Sheet('some', pictures, {7: 'a.png', 9: 'b.png'}, {'truth': {7: [box]}, 'found': {9: [box, box]}}, 2)
    assert list(sheet.colours) == ['cell']
    panels = [axes for axes in sheet.draw().axes if axes.images]
    assert [axes.get_title() for axes in panels] == ['truth', 'found', '', '']
    assert [len(axes.patches) for axes in panels] == [1, 0, 0, 2]
