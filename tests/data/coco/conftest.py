"""A small, good data set in COCO's form, and what mmdet makes of one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT = 96, 64
CLASSES = ('apple', 'pear')


@pytest.fixture(autouse=True)
def own_memory(monkeypatch, tmp_path):
    """What is remembered of files stays in the test's folder."""
    monkeypatch.setenv('UPVIT_MM_CACHE', str(tmp_path / 'memory'))


@pytest.fixture
def good(tmp_path) -> Callable[[], tuple[dict[str, Any], Path]]:
    """``good()``: content of a good file, and the folder of its pictures."""

    def make() -> tuple[dict[str, Any], Path]:
        folder, rng = tmp_path / 'pictures', np.random.default_rng(0)
        folder.mkdir(exist_ok=True)
        images, rows = [], []
        for i in range(6):
            name = f'{i:04d}.png'
            Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(folder / name)
            images.append(dict(id=i + 1, file_name=name, width=WIDTH, height=HEIGHT))
            for k in range(2):
                x, y, w, h = 1.0 + 66 * k, 2.0 + 8 * i, 20.0 + i, 14.0 + k
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                row = dict(id=len(rows) + 1, image_id=i + 1, category_id=1 + (i + k) % 2, bbox=[x, y, w, h])
                rows.append(row | dict(area=w * h, iscrowd=0, segmentation=[corners]))
        categories = [dict(id=j + 1, name=name) for j, name in enumerate(CLASSES)]
        return dict(images=images, annotations=rows, categories=categories), folder

    return make


@pytest.fixture
def write(tmp_path) -> Callable[[Any], Path]:
    """``write(content)``: a file of that content, or of those bytes."""

    def to_file(content: Any) -> Path:
        path = tmp_path / 'annotations.json'
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return to_file


@pytest.fixture
def read_by_mmdet(scope) -> Callable[[Path, Path], Counter]:
    """``read_by_mmdet(path, folder)``: number of objects by class that mmdet learns from, and of pictures."""

    def read(path: Path, folder: Path) -> Counter:
        from mmdet.datasets import CocoDataset

        scope('mmdet')
        prefix = dict(img=str(folder))
        dataset = CocoDataset(
            ann_file=str(path), data_prefix=prefix, metainfo=dict(classes=CLASSES), pipeline=[], filter_cfg=None
        )
        found = Counter(pictures=len(dataset))
        for k in range(len(dataset)):
            for instance in dataset.get_data_info(k)['instances']:
                assert instance['mask']
                found[CLASSES[instance['bbox_label']]] += not instance['ignore_flag']
        return found

    return read


@pytest.fixture
def judged_by_mmdet(scope) -> Callable[[Path], float]:
    """``judged_by_mmdet(path)``: box AP of detections that are all right."""

    def judge(path: Path) -> float:
        import torch
        from mmdet.evaluation import CocoMetric

        scope('mmdet')
        metric = CocoMetric(ann_file=str(path), metric=['bbox'])
        metric.dataset_meta = dict(classes=CLASSES)
        content = json.loads(path.read_text(encoding='utf-8'))
        order = [category['id'] for category in content['categories']]
        for image in content['images']:
            rows = [row for row in content['annotations'] if row['image_id'] == image['id']]
            boxes = torch.tensor([row['bbox'] for row in rows]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            labels = torch.tensor([order.index(row['category_id']) for row in rows])
            instances = dict(bboxes=boxes, scores=torch.ones(len(rows)), labels=labels)
            sample = dict(img_id=image['id'], ori_shape=(HEIGHT, WIDTH), pred_instances=instances)
            metric.process({}, [sample])
        return metric.evaluate(len(content['images']))['coco/bbox_mAP']

    return judge
