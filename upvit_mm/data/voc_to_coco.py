"""VOC's XML files as COCO files: the other tools compare detectors by COCO's AP, and check COCO files completely."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upvit_mm.data.coco import examine
from upvit_mm.data.datasets import Dataset
from upvit_mm.data.own_data import OwnData, OwnPart, choose, folders_below, own_detection_data
from upvit_mm.data.picture_files import PICTURE_ENDINGS
from upvit_mm.data.voc import VocFolder, VocObject
from upvit_mm.files import write_text_atomically

LISTS, ANNOTATIONS, PICTURES = 'ImageSets/Main', 'Annotations', 'JPEGImages'


def voc_root(root: Path) -> Path | None:
    """The folder of VOC data in a data folder; None where there are none."""
    return next((folder for folder in folders_below(root) if any((folder / ANNOTATIONS).glob('*.xml'))), None)


def look_at_voc(root: Path, stem: Path, train: str | None = None, val: str | None = None) -> OwnData:
    """Data in VOC's form. Their annotations are written as COCO files, ``STEM_train.json`` and ``STEM_val.json``.

    A box keeps the pixels that it covers: VOC counts them from 1 and includes both ends. Objects marked as difficult
    become crowds, which mmdet ignores as it ignores difficult ones.

    Args:
        root: the folder of ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``.
        stem: start of the paths of the new files.
        train, val: lists in ``ImageSets/Main``, for example ``'trainval.txt'``; None = found by their names.

    Raises:
        FileNotFoundError: a picture or an XML file is missing.
        ValueError: a list is missing or not clear, or a file cannot be read.
    """
    folders = {part: folder_of(root, part, name) for part, name in lists_of(root, train, val).items()}
    classes = sorted({found.name for found in folders['train'].objects})
    parts, files = {}, {}
    for part, folder in folders.items():
        more = sorted({found.name for found in folder.objects} - set(classes))  # refused by the check of classes
        path = Path(f'{stem}_{part}.json').absolute()
        write_text_atomically(path, json.dumps(coco_of(folder, [*classes, *more]), ensure_ascii=False))
        files[part] = examine(path)
        parts[part] = OwnPart(dict(ann_file=str(path), data_prefix=dict(img=f'{PICTURES}/')), len(files[part].names))
    return own_detection_data(root, parts, files)


def lists_of(root: Path, train: str | None = None, val: str | None = None) -> dict[str, str]:
    """Names of the lists of ``'train'`` and ``'val'`` in ``ImageSets/Main``.

    Args:
        root: the folder of VOC data.
        train, val: names that the user gave; None = found by their names.

    Raises:
        ValueError: a list is missing or not clear.
    """
    lists = root / LISTS
    names = [
        path.name for path in sorted(lists.glob('*.txt')) if '_' not in path.stem
    ]  # CLASS_train.txt lists one class
    return {part: choose(names, part, given, f'lists in {lists}') for part, given in (('train', train), ('val', val))}


def folder_of(root: Path, part: str, name: str) -> VocFolder:
    """The annotations of one part.

    Args:
        root: the folder of VOC data.
        part: ``'train'``, ``'val'`` or ``'test'``.
        name: of its list.
    """
    return VocFolder(Dataset(part, f'{part} data', dict(data_root=str(root), ann_file=f'{LISTS}/{name}'), 'mmdet'))


def coco_of(folder: VocFolder, classes: list[str]) -> dict[str, Any]:
    """The content of a COCO file.

    Args:
        folder: annotations in VOC's form.
        classes: categories, in order; objects of other names are not written.

    Raises:
        FileNotFoundError: a picture is missing.
        ValueError: a file cannot be read or has no size.
    """
    sizes, objects = folder.contents
    images, numbers = [], {}
    for number, (name, size) in enumerate(zip(folder.ids, sizes), 1):
        if size is None:
            raise ValueError(f'annotation file {str(folder.annotations / name)!r}.xml has no size; write it.')
        numbers[name] = number
        images.append(dict(id=number, file_name=_picture(folder, name), width=size[0], height=size[1]))
    labels = {name: k for k, name in enumerate(classes, 1)}
    rows = [
        dict(id=k, image_id=numbers[found.picture], category_id=labels[found.name], **_box(found, images, numbers))
        for k, found in enumerate((found for found in objects if found.name in labels), 1)
    ]
    categories = [dict(id=number, name=name) for name, number in labels.items()]
    return dict(images=images, annotations=rows, categories=categories)


def _picture(folder: VocFolder, name: str) -> str:
    for ending in PICTURE_ENDINGS:
        for written in (ending, ending.upper()):
            if (folder.pictures / f'{name}{written}').is_file():
                return f'{name}{written}'
    raise FileNotFoundError(
        f'data folder {str(folder.pictures)!r} has no picture {name} ({", ".join(PICTURE_ENDINGS)}), which '
        f'{folder.dataset.path(folder.dataset.ann_file)} lists; put it there, or remove its line.'
    )


def _box(found: VocObject, images: list[Mapping[str, Any]], numbers: Mapping[str, int]) -> dict[str, Any]:
    image = images[numbers[found.picture] - 1]
    left, top = (max(side - 1, 0) for side in found.box[:2])
    right, bottom = min(found.box[2], image['width']), min(found.box[3], image['height'])
    box = [left, top, right - left, bottom - top]
    return dict(bbox=box, area=box[2] * box[3], iscrowd=int(found.difficult))
