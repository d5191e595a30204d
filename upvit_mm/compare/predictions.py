"""Detections as a COCO result file: plain JSON, which runs no code when it is read.

The format is that of https://cocodataset.org/#format-results, which ``pycocotools.coco.COCO.loadRes`` reads.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from upvit_mm.files import write_text_atomically

LARGEST = 1e9  # larger than any coordinate in pixels
Result = Mapping[str, Any]  # image_id, category_id, bbox as x, y, w, h in pixels, score; with masks segmentation as RLE


class PredictionsFile(BaseMetric):
    """Write all detections to one COCO result file. It gives no metric.

    Args:
        path: of the file.
        category_ids: ids of the annotation file, by label.
    """

    default_prefix = 'predictions'  # mmengine warns without one

    def __init__(self, path: Path, category_ids: Sequence[int]):
        super().__init__()
        self.path, self.category_ids = path, category_ids

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Collect predictions; as everywhere in mmengine, one entry for each image with all of its results."""
        self.results += [self._of_image(sample['img_id'], sample['pred_instances']) for sample in data_samples]

    def compute_metrics(self, results: list[list[Result]]) -> dict[str, float]:
        write_text_atomically(self.path, json.dumps(list(chain.from_iterable(results))) + '\n')
        return {}

    def _of_image(self, image_id: int, found: Mapping[str, Any]) -> list[Result]:
        boxes = found['bboxes'].cpu().double()  # (n, 4) as x1, y1, x2, y2
        boxes[:, 2:] -= boxes[:, :2]
        results = [
            {'image_id': image_id, 'category_id': self.category_ids[label], 'bbox': box, 'score': score}
            for box, label, score in zip(boxes.tolist(), found['labels'].tolist(), found['scores'].tolist())
        ]
        for result, mask in zip(results, found.get('masks', ())):  # (n, h, w)
            pixels = torch.as_tensor(mask).cpu().numpy().astype(np.uint8, order='F')
            rle = coco_mask.encode(pixels)
            result['segmentation'] = {'size': rle['size'], 'counts': rle['counts'].decode('ascii')}
        return results


def read_results(path: Path, coco: COCO) -> dict[int, list[Result]]:
    """A COCO result file by image, checked against its annotations.

    Args:
        path: of the file.
        coco: the annotations.

    Raises:
        ValueError: it is not such a file, or an entry does not fit the annotations; the message says which and why.
    """
    try:
        results = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{error or type(error).__name__}') from error
    if not isinstance(results, list):
        raise ValueError('it must hold a list')
    found = defaultdict(list)
    for k, result in enumerate(results):
        if problem := _problem(result, coco):
            raise ValueError(f'entry {k}: {problem}')
        found[result['image_id']].append(result)
    return dict(found)


def mask_of(result: Result) -> np.ndarray | None:
    """The mask of a result, ``(h, w)`` bool; None if it has none.

    Raises:
        ValueError: its run lengths do not fill a mask of its size.
    """
    if 'segmentation' not in result:
        return None
    height, width = result['segmentation']['size']
    runs = _run_lengths(result['segmentation']['counts'])
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f'segmentation in image {result["image_id"]}: its runs do not fill {height} x {width} pixels')
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T  # column by column


def _run_lengths(counts: str) -> list[int]:
    """Alternating lengths of the runs of zeros and ones, in pycocotools' format (``rleToString`` of its maskApi.c).

    pycocotools reads and writes outside its memory if such a text is damaged, so it must not read files of others. Each
    character holds 5 bits of a number, low bits first, and whether more follow. From the fourth run on, numbers are
    differences to the previous run of the same kind.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError(f'segmentation: counts = {counts[:20]!r}...: not the run lengths of a mask')
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)  # the highest bit is the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(f'segmentation: counts end within a number: {counts[-20:]!r}')
    return runs


def _problem(result: Any, coco: COCO) -> str | None:
    """The problem of an entry; None if there is none."""
    if not isinstance(result, dict):
        return 'it must be a mapping'
    for key, known in (('image_id', coco.imgs), ('category_id', coco.cats)):
        value = result.get(key)
        if type(value) not in (int, str) or value not in known:
            return f'{key} = {value!r} is not in the annotations'
    box, score = result.get('bbox'), result.get('score')
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return f'bbox = {box!r} must be four numbers below {LARGEST:g}'
    if not _is_number(score):
        return f'score = {score!r} must be a number'
    if 'segmentation' in result:
        image, rle = coco.imgs[result['image_id']], result['segmentation']
        size = [image['height'], image['width']]
        if not isinstance(rle, dict) or rle.get('size') != size or not isinstance(rle.get('counts'), str):
            return f'segmentation must be run lengths as text for {size} pixels, the size of its image'
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and -LARGEST < value < LARGEST  # NaN is not
