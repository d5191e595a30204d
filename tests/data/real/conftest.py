"""Small downloads: the nuclei and the blood cells of the fixtures in the forms that users download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

PICTURES = Path(__file__).parents[2] / 'fixtures/pictures'


def silent(items, **_):
    """In the place of a progress bar."""
    return items


@pytest.fixture
def track():
    return silent


@pytest.fixture
def bowl(tmp_path) -> Path:
    """``stage1_train`` with the eight nuclei pictures of the fixtures, ids filled up to 64 characters."""
    root = tmp_path / 'bowl/stage1_train'
    for part in ('train', 'val'):
        content = json.loads((PICTURES / f'nuclei/{part}.json').read_text())
        for image in content['images']:
            folder = root / (Path(image['file_name']).stem + 52 * '0')
            (folder / 'images').mkdir(parents=True)
            (folder / 'masks').mkdir()
            with Image.open(PICTURES / f'nuclei/{part}' / image['file_name']) as picture:
                picture.convert('RGBA').save(folder / f'images/{folder.name}.png')  # as in the Bowl
            rows = [row for row in content['annotations'] if row['image_id'] == image['id']]
            for k, row in enumerate(rows):
                mask = Image.fromarray(coco_mask.decode(row['segmentation']) * 255)
                mask.save(folder / f'masks/{k:03d}.png')
    return root


@pytest.fixture
def blood(tmp_path) -> Path:
    """A clone of BCCD: the seven pictures of the fixtures in its folder ``BCCD``; to be changed at will."""
    shutil.copytree(PICTURES / 'blood', tmp_path / 'BCCD_Dataset/BCCD')
    return tmp_path / 'BCCD_Dataset'
