"""What every backbone's detector finds on the same pictures, beside the ground truth."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get_local_path
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO

from upvit_mm.benchmark.page.charts import data_uri
from upvit_mm.benchmark.page.sources import DETECTORS, DetectorRuns
from upvit_mm.benchmark.pictures import Detection, draw_picture, ground_truth, read_predictions

PICTURES = 4
MIN_SCORE = 0.3  # mmdet's for pictures
DPI = 150


def detections(runs: DetectorRuns) -> dict[str, Any]:
    """The first annotated pictures of the test data with the ground truth and what the first seed's detectors find.

    Raises:
        FileNotFoundError: predictions or data are missing.
        ValueError: damaged predictions.
    """
    from mmdet.registry import DATASETS

    init_default_scope('mmdet')
    settings = runs.cfg.test_dataloader.dataset
    while 'ann_file' not in settings and 'dataset' in settings:
        settings = settings.dataset
    dataset = DATASETS.build({**settings, 'lazy_init': True})  # knows paths and classes
    with get_local_path(dataset.ann_file, backend_args=dataset.backend_args) as ann_file:
        coco = COCO(ann_file)
    dumped = {row['name']: _unpickled(runs.predictions(row)) for row in runs.rows}
    samples = [sample for sample in next(iter(dumped.values())) if coco.getAnnIds(sample['img_id'])][:PICTURES]
    columns = {'ground truth': ground_truth(coco, [sample['img_id'] for sample in samples])}
    for name, everything in dumped.items():
        columns[name] = read_predictions(everything, dataset.metainfo['classes'], MIN_SCORE)
    rows = []
    for sample in samples:
        picture = mmcv.imread(sample['img_path'], channel_order='rgb', backend_args=dataset.backend_args)
        file = Path(sample['img_path']).name
        cells = [_cell(picture, found[sample['img_id']], f'{name}, {file}') for name, found in columns.items()]
        rows.append({'name': file, 'cells': cells})
    return {'title': runs.title, 'columns': list(columns), 'rows': rows, 'min_score': MIN_SCORE}


def _cell(picture: np.ndarray, found: Sequence[Detection], where: str) -> dict[str, str]:
    buffer = io.BytesIO()
    draw_picture(picture, found).savefig(buffer, format='webp', dpi=DPI, pil_kwargs={'quality': 80})
    labels = ', '.join(detection.label for detection in found) or f'nothing above {MIN_SCORE}'
    return {'src': data_uri(buffer), 'text': f'{where}: {labels}'}


def _unpickled(path: Path) -> list[Mapping[str, Any]]:
    try:
        return pickle.loads(path.read_bytes())  # written by our own test run
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f'{str(path)!r} is damaged ({error}); {DETECTORS.tool} writes it.') from error
