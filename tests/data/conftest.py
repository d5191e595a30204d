"""Small good data: annotated pictures of fruit, and class folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SIDE = 48
NAMES = ('apple', 'pear', 'plum')


@pytest.fixture(autouse=True)
def own_memory(monkeypatch, tmp_path):
    """What is remembered of files stays in the test's folder."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'memory'))


class Fruit:
    """Detection data in a folder, and configs for them.

    Attributes:
        root: the folder, with ``train.json``, ``val.json`` and their pictures.
    """

    def __init__(self, root: Path):
        self.root = root
        for part, first in (('train', 0), ('val', 1)):
            self.write(part, NAMES, first)

    def write(self, part: str, names: Sequence[str], first: int = 0, **changes: Any) -> Path:
        """An annotation file of three pictures with one object each, of the classes in turn, and the pictures."""
        (self.root / part).mkdir(parents=True, exist_ok=True)
        images, rows = [], []
        for k in range(3):
            Image.new('RGB', (SIDE, SIDE), (80 * k, 0, 90)).save(self.root / part / f'{k}.png')
            images.append(dict(id=k + 1, file_name=f'{k}.png', width=SIDE, height=SIDE))
            x, y, w, h = 2.0 + first, 3.0, 20.0, 10.0 + k
            corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            row = dict(id=k + 1, image_id=k + 1, category_id=1 + (first + k) % len(names), bbox=[x, y, w, h])
            rows.append(row | dict(area=w * h, iscrowd=0, segmentation=corners))
        categories = [dict(id=j + 1, name=name) for j, name in enumerate(names)]
        return self.save(part, dict(images=images, annotations=rows, categories=categories) | changes)

    def save(self, part: str, content: Any) -> Path:
        path = self.root / f'{part}.json'
        path.write_text(json.dumps(content), encoding='utf-8')
        return path

    def load(self, name: str) -> Any:
        return json.loads((self.root / name).read_text(encoding='utf-8'))

    def cfg(self, classes: Sequence[str] = NAMES, heads: int | None = None, **changes: Any) -> dict[str, Any]:
        """A RetinaNet's config; ``val={...}`` and ``train={...}`` change settings of the datasets."""
        datasets = {
            part: dict(
                type='CocoDataset',
                data_root=str(self.root),
                ann_file=f'{part}.json',
                data_prefix=dict(img=f'{part}/'),
                metainfo=dict(classes=classes),
            )
            | changes.pop(part, {})
            for part in ('train', 'val')
        }
        judge = dict(type='CocoMetric', ann_file=str(self.root / 'val.json'), metric='bbox')
        return (
            dict(
                default_scope='mmdet',
                model=dict(type='RetinaNet', bbox_head=dict(type='RetinaHead', num_classes=heads or len(classes))),
                train_dataloader=dict(dataset=datasets['train']),
                val_dataloader=dict(dataset=datasets['val']),
                test_dataloader=dict(dataset=datasets['val']),
                val_evaluator=judge,
                test_evaluator=judge,
            )
            | changes
        )


@pytest.fixture
def fruit(tmp_path) -> Fruit:
    return Fruit(tmp_path / 'fruit')


@pytest.fixture
def class_folders(tmp_path) -> Callable[..., dict[str, Any]]:
    """``class_folders(train=('cat', 'dog'), val=('cat', 'dog'), **settings)``: folders of one picture each in
    ``tmp_path / 'pets'``, and a config that reads them."""

    def make(train: Sequence[str] = ('cat', 'dog'), val: Sequence[str] = ('cat', 'dog'), **settings: Any) -> dict:
        root = tmp_path / 'pets'
        for part, names in (('train', train), ('val', val)):
            for name in names:
                (root / part / name).mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (8, 8)).save(root / part / name / 'a.png')
        loaders = {
            f'{part}_dataloader': dict(
                dataset=dict(type='CustomDataset', data_root=str(root), data_prefix=part) | settings
            )
            for part in ('train', 'val')
        }
        head = dict(type='LinearClsHead', num_classes=len(train), in_channels=8)
        return dict(default_scope='mmpretrain', model=dict(type='ImageClassifier', head=head), **loaders)

    return make
