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
from upvit_mm.compare.pictures import Detection, Predictions, Sheet, draw_picture, ground_truth, predictions_of
from upvit_mm.compare.predictions import read_results
from upvit_mm.data.datasets import datasets_in

PICTURES = 4
MIN_SCORE = 0.3  # mmdet's for pictures
DPI = 150


def detections(sheet: Sheet) -> dict[str, Any]:
    """A sheet for the page, its pictures as ``data:`` URIs with a text for each."""
    rows = []
    for image_id, picture in sheet.pictures.items():
        file = sheet.files[image_id]
        cells = [
            _cell(picture, found.get(image_id, ()), sheet.colours, f'{name}, {file}')
            for name, found in sheet.columns.items()
        ]
        rows.append({'name': file, 'cells': cells})
    return {
        'title': sheet.title,
        'columns': list(sheet.columns),
        'rows': rows,
        'min_score': MIN_SCORE,
        'colours': sheet.colours,
        'count': sheet.count,
    }


def first_pictures(runs: DetectorRuns, titles: Mapping[str, str] | None = None) -> Sheet:
    """The first annotated pictures of the test data, with the ground truth and the detections of the first seed.

    Args:
        runs: the comparison.
        titles: the rows to show, and what to call them; None = all, by their names.

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
    rows = {row.name: row for row in runs.table.rows}
    for name, title in (titles or {name: name for name in rows}).items():
        columns[title] = _found(runs.predictions(rows[name]), coco, paths)
    return Sheet(
        runs.title,
        {key: mmcv.imread(path, channel_order='rgb', backend_args=dataset.backend_args) for key, path in paths.items()},
        {key: Path(path).name for key, path in paths.items()},
        columns,
        len(dataset),
    )


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
