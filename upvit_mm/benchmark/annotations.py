"""Time to check a large annotation file, compared with the time to read only its JSON."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from upvit_mm.data.coco import USES, examine
from upvit_mm.stopwatch import seconds

CATEGORIES = 80
POINTS = (12, 27)  # per polygon, so that 860,000 objects take about as many bytes as in COCO
WIDTH, HEIGHT = 640, 480  # pixels


def measure_annotations(images: int, objects: int, seed: int = 0) -> dict[str, Any]:
    """Write a file of random polygons, check it twice, and read it once only with ``json``.

    Args:
        images: pictures that it lists (there are none on disk).
        objects: objects that it lists.
        seed: seed of the polygons.

    Returns:
        ``bytes`` of the file; seconds of processor time of the ``first`` and the ``second`` check, and of ``json``;
        their ``ratio``, first check to JSON.
    """
    with tempfile.TemporaryDirectory() as folder, patch.dict('os.environ', UPVIT_MM_CACHE=folder):
        path = Path(folder, 'instances.json')
        with path.open('w', encoding='utf-8') as file:
            file.writelines(_pieces(images, objects, np.random.default_rng(seed)))
        # one thread works, so processor time equals the time on the clock of a quiet machine
        times = {name: seconds(lambda: examine(path).check(USES), time.process_time) for name in ('first', 'second')}
        times['json'] = seconds(lambda: json.loads(path.read_bytes()), time.process_time)
        size = path.stat().st_size
    return {'images': images, 'objects': objects, 'bytes': size, **times, 'ratio': times['first'] / times['json']}


def _pieces(images: int, objects: int, rng: np.random.Generator) -> Iterator[str]:
    """The text of the file, one entry at a time."""
    yield '{"images": ['
    for i in range(images):
        entry = {'id': i + 1, 'file_name': f'{i + 1:012d}.jpg', 'width': WIDTH, 'height': HEIGHT, 'license': 1}
        yield (', ' if i else '') + json.dumps(entry)
    yield '], "annotations": ['
    for k in range(objects):
        yield (', ' if k else '') + json.dumps(_object(k, images, rng))
    categories = [{'id': j + 1, 'name': f'class {j + 1}', 'supercategory': ''} for j in range(CATEGORIES)]
    yield f'], "categories": {json.dumps(categories)}}}'


def _object(k: int, images: int, rng: np.random.Generator) -> dict[str, Any]:
    """An ellipse as a polygon."""
    centre, radii = rng.uniform([100, 100], [WIDTH - 100, HEIGHT - 100]), rng.uniform(2, 100, size=2)
    angles = np.linspace(0, 2 * np.pi, rng.integers(*POINTS, endpoint=True), endpoint=False)
    points = (centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(2)
    low, high = points.min(axis=0), points.max(axis=0)
    return {
        'id': k + 1,
        'image_id': int(rng.integers(images)) + 1,
        'category_id': int(rng.integers(CATEGORIES)) + 1,
        'bbox': [*low.tolist(), *(high - low).round(2).tolist()],
        'area': float(np.pi * radii.prod()),
        'iscrowd': 0,
        'segmentation': [points.ravel().tolist()],
    }
