"""The benchmark of annotation files measures a good one."""

from __future__ import annotations

import json

import numpy as np

from upvit_mm.benchmark.annotations import _pieces, measure_annotations
from upvit_mm.data.coco import USES, examine


def test_what_is_measured(monkeypatch, tmp_path):
    results = measure_annotations(images=5, objects=40)
    monkeypatch.setenv('UPVIT_MM_CACHE', str(tmp_path))
    path = tmp_path / 'a.json'
    path.write_text(''.join(_pieces(5, 40, np.random.default_rng(0))))
    assert path.stat().st_size == results['bytes']
    assert len(json.loads(path.read_text())['annotations']) == 40
    file = examine(path)
    assert (file.objects, len(file.names), len(file.categories), file.faults) == (40, 5, 80, ())
    file.check(USES)
