"""Detections of every backbone on the same pictures, next to the ground truth."""

from __future__ import annotations

import io
from collections.abc import Container, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get_local_path
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO

from upvit_mm.compare.page.charts import data_uri
from upvit_mm.compare.page.sources import DETECTORS, DetectorRuns
from upvit_mm.compare.pictures import Detection, Predictions, colours_of, draw_picture, ground_truth, predictions_of
from upvit_mm.compare.predictions import read_results
from upvit_mm.data.datasets import datasets_in

PICTURES = 4
MIN_SCORE = 0.3  # mmdet's for pictures
DPI = 150


def detections(runs: DetectorRuns) -> dict[str, Any]:
    """The first annotated pictures of the test data, with the ground truth and the detections of the first seed; the
    colour of every class in them.

    Raises:
        FileNotFoundError: predictions or data are missing.
        ValueError: damaged predictions.
    """
    from mmdet.registry import DATASETS

    init_default_scope('mmdet')
    dataset = DATASETS.build(datasets_in(runs.cfg, 'test')[0].settings)
    with get_local_path(dataset.ann_file, backend_args=dataset.backend_args) as ann_file:
        coco = COCO(ann_file)
    images = map(dataset.get_data_info, range(len(dataset)))
    annotated = (image for image in images if coco.getAnnIds(image['img_id']))
    paths = {image['img_id']: image['img_path'] for image in islice(annotated, PICTURES)}
    columns = {'ground truth': ground_truth(coco, list(paths))}
    for row in runs.table.rows:
        columns[row.name] = _found(runs.predictions(row), coco, paths)
    colours = colours_of(found.get(image_id, ()) for found in columns.values() for image_id in paths)
    rows = []
    for image_id, path in paths.items():
        picture = mmcv.imread(path, channel_order='rgb', backend_args=dataset.backend_args)
        file = Path(path).name
        cells = [_cell(picture, found.get(image_id, ()), colours, f'{name}, {file}') for name, found in columns.items()]
        rows.append({'name': file, 'cells': cells})
    return {
        'title': runs.title,
        'columns': list(columns),
        'rows': rows,
        'min_score': MIN_SCORE,
        'colours': colours,
        'count': len(dataset),
    }


def _found(path: Path, coco: COCO, shown: Container[int]) -> Predictions:
    """The predictions in a file for the pictures that are shown."""
    try:
        results = read_results(path, coco)
        return predictions_of({key: found for key, found in results.items() if key in shown}, coco, MIN_SCORE)
    except ValueError as error:
        raise ValueError(f'{str(path)!r} is damaged ({error}); {DETECTORS.tool} writes it.') from error


def _cell(picture: np.ndarray, found: Sequence[Detection], colours: Mapping[str, str], where: str) -> dict[str, str]:
    buffer = io.BytesIO()
    draw_picture(picture, found, colours).savefig(buffer, format='webp', dpi=DPI, pil_kwargs={'quality': 80})
    labels = ', '.join(detection.label for detection in found) or f'nothing above {MIN_SCORE}'
    return {'src': data_uri(buffer), 'text': f'{where}: {labels}'}
