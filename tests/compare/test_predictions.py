"""COCO result files: what is written, and what is refused when they are read."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from upvit_mm.compare.predictions import PredictionsFile, mask_of, read_results

GOOD = {'image_id': 3, 'category_id': 7, 'bbox': [1.0, 2.0, 3.5, 4], 'score': 0.5}


@pytest.fixture
def coco(tmp_path):
    """Images 3 and 9 of 4x6 pixels; categories 7 and 2."""
    images = [{'id': k, 'file_name': f'{k}.png', 'height': 4, 'width': 6} for k in (3, 9)]
    content = {'images': images, 'annotations': [], 'categories': [{'id': k, 'name': f'c{k}'} for k in (7, 2)]}
    (tmp_path / 'annotations.json').write_text(json.dumps(content))
    return COCO(tmp_path / 'annotations.json')


@pytest.fixture
def read(tmp_path, coco):
    """``read(content)``: what is read of a file of that content."""

    def call(content):
        (tmp_path / 'predictions.json').write_text(content if isinstance(content, str) else json.dumps(content))
        return read_results(tmp_path / 'predictions.json', coco)

    return call


def test_what_is_written_is_read(tmp_path, coco):
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[0, 1:3, 2:6] = mask[1, 0, 0] = True
    found = {'bboxes': torch.tensor([[1.0, 2.0, 4.5, 6.0], [0.1, 0.0, 6.0, 4.0]]), 'labels': torch.tensor([1, 0])}
    found |= {'scores': torch.tensor([0.75, 0.5])}
    empty = {'bboxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.int64), 'scores': torch.zeros(0)}
    file = PredictionsFile(tmp_path / 'sub/predictions.json', [7, 2])
    for samples in (
        [{'img_id': 9, 'pred_instances': found | {'masks': mask}}],
        [{'img_id': 3, 'pred_instances': empty}],
    ):
        file.process(None, samples)
    assert file.evaluate(2) == {}
    results = read_results(tmp_path / 'sub/predictions.json', coco)
    assert list(results) == [9]
    first, second = results[9]
    assert (first['category_id'], first['bbox'], first['score']) == (2, [1.0, 2.0, 3.5, 4.0], 0.75)
    assert second['bbox'] == pytest.approx([0.1, 0, 5.9, 4])
    assert np.array_equal(mask_of(first), mask[0].numpy())
    assert np.array_equal(mask_of(second), mask[1].numpy())
    assert mask_of(GOOD) is None
    assert len(coco.loadRes(str(tmp_path / 'sub/predictions.json')).anns) == 2
    assert [path.name for path in (tmp_path / 'sub').iterdir()] == ['predictions.json']


def test_a_whole_file_of_nothing(read):
    assert read([]) == {}
    assert read([GOOD, {**GOOD, 'image_id': 9}, GOOD]) == {3: [GOOD, GOOD], 9: [{**GOOD, 'image_id': 9}]}


RLE = {'size': [4, 6], 'counts': coco_mask.encode(np.ones((4, 6), np.uint8, order='F'))['counts'].decode()}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'Expecting value'),
        ('[' * 100_000, 'RecursionError|recursion'),
        ({}, 'it must hold a list'),
        ([GOOD, 3], 'entry 1: it must be a mapping'),
        ([{**GOOD, 'image_id': 4}], 'entry 0: image_id = 4 is not in the annotations'),
        ([{**GOOD, 'image_id': [3]}], r'image_id = \[3\] is not in'),
        ([{**GOOD, 'image_id': 3.0}], r'image_id = 3\.0 is not in'),
        ([{**GOOD, 'category_id': 0}], 'category_id = 0 is not in the annotations'),
        ([{**GOOD, 'bbox': [1, 2, 3]}], r'bbox = \[1, 2, 3\] must be four numbers'),
        ([{**GOOD, 'bbox': [1, 2, 3, float('nan')]}], 'bbox = .* must be four numbers'),
        ([{**GOOD, 'bbox': [1, 2, 3, 10**400]}], 'bbox = .* must be four numbers'),
        ([{**GOOD, 'score': '0.5'}], "score = '0.5' must be a number"),
        ([{**GOOD, 'score': float('inf')}], 'score = inf must be a number'),
        ([{**GOOD, 'segmentation': [[0, 0, 1, 1, 2, 2]]}], r'run lengths as text for \[4, 6\] pixels'),
        ([{**GOOD, 'segmentation': {**RLE, 'size': [10**6, 10**6]}}], r'run lengths as text for \[4, 6\] pixels'),
        ([{**GOOD, 'segmentation': {**RLE, 'counts': [0, 24]}}], r'run lengths as text for \[4, 6\] pixels'),
    ],
)
def test_damage(read, content, message):
    with pytest.raises(ValueError, match=message):
        read(content)


def test_a_pickle_is_not_read(tmp_path, coco):
    (tmp_path / 'predictions.json').write_bytes(pickle.dumps([GOOD]))
    with pytest.raises(ValueError, match='decode'):
        read_results(tmp_path / 'predictions.json', coco)


@pytest.mark.parametrize(
    ('counts', 'message'),
    [
        ('', r'segmentation in image 3: its runs do not fill 4 x 6 pixels'),
        ('1', 'do not fill 4 x 6 pixels'),
        (RLE['counts'] + '1', 'do not fill 4 x 6 pixels'),
        ('0P00', 'do not fill|within a number'),
        ('N1H', 'do not fill'),  # a negative length
        (RLE['counts'] + 'P', 'counts end within a number'),
        ('o' * 9, 'not the run lengths of a mask'),
        ('\N{EURO SIGN}', 'not the run lengths of a mask'),
        ('\x00', 'not the run lengths of a mask'),
    ],
)
def test_runs_that_do_not_fill_their_mask(read, counts, message):
    """pycocotools would read beyond its memory, or leave pixels as the memory was."""
    ((result,),) = read([{**GOOD, 'segmentation': {**RLE, 'counts': counts}}]).values()
    with pytest.raises(ValueError, match=message):
        mask_of(result)


def test_masks_are_read_as_pycocotools_reads_them():
    random = np.random.default_rng(0)
    for k in range(200):
        height, width = random.integers(1, 90, 2)
        mask = np.asfortranarray(random.random((height, width)) < [0, 0.01, 0.5, 0.99, 1][k % 5], dtype=np.uint8)
        if k % 2:
            mask = np.asfortranarray(np.kron(mask, np.ones((9, 9), np.uint8)))  # longer runs, whose lengths take more
        rle = coco_mask.encode(mask)
        found = mask_of({'image_id': 1, 'segmentation': {**rle, 'counts': rle['counts'].decode()}})
        assert found.dtype == bool
        assert np.array_equal(found, coco_mask.decode(rle))
