"""Ground truth as objects to draw."""

from __future__ import annotations

from pycocotools.coco import COCO

from upvit_mm.compare.pictures import ground_truth


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
    assert (whole.box, whole.label, whole.mask.sum()) == ((2, 2, 6, 6), 'cell', 16)
    assert [(found.box, found.label, found.mask) for found in boxes] == [((2, 2, 6, 6), 'cell', None)] * 2
