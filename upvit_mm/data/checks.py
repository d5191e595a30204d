"""Checks, before hours of training, that the data a config points at are there and fit its classes."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COCO_TYPES = ('CocoDataset', 'mmdet.CocoDataset')
FOLDER_TYPES = ('CustomDataset', 'mmpretrain.CustomDataset', 'ImageNet', 'mmpretrain.ImageNet')
SOURCES = {'data/digits': 'the embedded digits: python tools/prepare_digits.py', 'data/coco': 'docs/coco.md, step 1'}
IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # mmpretrain's, unless a dataset has its own


def check_datasets(cfg: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Check every COCO and image-folder dataset that the given parts of a config read from this machine's disk.

    A category of the annotation file that the config does not list raises, since mmdet drops its objects without a
    word; set ``allow_unlisted_categories = True`` in the config to train on a subset on purpose. So does a class folder
    without images, which mmpretrain only logs. Datasets of other types and those behind a ``backend_args`` or an
    address are left to mmengine.

    Args:
        cfg: a config of mmdet or mmpretrain.
        parts: of ``'train'``, ``'val'``, ``'test'``.

    Raises:
        FileNotFoundError: an annotation file or image folder is missing.
        ValueError: an annotation file is damaged, its categories are not those of the config in the same order, or a
            class folder has no images.
    """
    for part in parts:
        for dataset in datasets_of(cfg.get(f'{part}_dataloader')):
            kind = dataset.get('type')
            if dataset.get('backend_args') or kind not in COCO_TYPES + FOLDER_TYPES:
                continue
            _check_folders(dataset)
            if kind in FOLDER_TYPES:
                _check_classes(dataset)
            if kind in COCO_TYPES and dataset.get('ann_file') and not _is_address(dataset, dataset['ann_file']):
                allow_unlisted = bool(cfg.get('allow_unlisted_categories'))
                _check_coco(dataset, _path(dataset, dataset['ann_file']), allow_unlisted)


def datasets_of(node: Any) -> Iterator[Mapping[str, Any]]:
    """The innermost dataset settings below a dataloader, through wrappers such as RepeatDataset."""
    if not isinstance(node, Mapping):
        return
    inner = node.get('dataset') or node.get('datasets')
    if inner is None:
        yield node
    else:
        for child in inner if isinstance(inner, Sequence) else [inner]:
            yield from datasets_of(child)


def _path(dataset: Mapping[str, Any], part: str) -> Path:
    return Path(dataset.get('data_root') or '', part)


def _is_address(dataset: Mapping[str, Any], part: str) -> bool:
    return '://' in part or '://' in str(dataset.get('data_root'))


def _check_folders(dataset: Mapping[str, Any]) -> None:
    prefix = dataset.get('data_prefix') or dataset.get('split')  # ImageNet's split is a folder
    prefixes = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix] if isinstance(prefix, str) else []
    for part in ['', *(p for p in prefixes if isinstance(p, str))]:
        path = _path(dataset, part)
        if not _is_address(dataset, part) and not path.is_dir():
            sources = [f' ({source})' for folder, source in SOURCES.items() if f'/{folder}/' in f'/{path.as_posix()}/']
            raise FileNotFoundError(
                f'data folder {str(path)!r} does not exist: put the data there, link it, or set data_root'
                f'{"".join(sources)}.'
            )


def _check_classes(dataset: Mapping[str, Any]) -> None:
    """Every folder below the images' folder is a class, unless an annotation file says otherwise."""
    split, prefix = dataset.get('split'), dataset.get('data_prefix') or dataset.get('split') or ''
    listed = dataset.get('ann_file') or (split and _path(dataset, f'meta/{split}.txt').is_file())
    prefix = prefix.get('img_path', '') if isinstance(prefix, Mapping) else prefix
    if listed or split == 'test' or not dataset.get('with_label', True) or _is_address(dataset, prefix):
        return
    root = _path(dataset, prefix)
    endings = tuple(ending.lower() for ending in dataset.get('extensions', IMAGE_ENDINGS))
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if not folders:
        raise ValueError(f'data folder {str(root)!r} has no class folders; set data_prefix to the folder that has.')
    empty = [path.name for path in folders if not _has_image(path, endings)]
    if empty:
        raise ValueError(
            f'data folder {str(root)!r}: {len(empty)} of {len(folders)} class folders have no image '
            f'({", ".join(endings)}): {", ".join(empty[:5])}. Put images there, or remove what is no class.'
        )


def _has_image(folder: str | os.PathLike, endings: tuple[str, ...]) -> bool:
    with os.scandir(folder) as entries:  # os.walk would read a folder of 1,300 images to its end first
        for entry in entries:
            if entry.is_dir():
                if _has_image(entry.path, endings):
                    return True
            elif entry.name.lower().endswith(endings) and not entry.name.startswith('.'):
                return True
    return False


def _check_coco(dataset: Mapping[str, Any], path: Path, allow_unlisted: bool) -> None:
    found = read_categories(path)
    classes = _classes(dataset)
    missing = [name for name in classes if name not in found]
    if missing:
        raise ValueError(
            f'annotation file {str(path)!r} lacks {len(missing)} of the {len(classes)} classes of the config: '
            f'{", ".join(missing[:5])}; it has {", ".join(found[:10])}. Set metainfo=dict(classes=...) and num_classes.'
        )
    unlisted = [name for name in found if name not in classes]
    if unlisted and not allow_unlisted:
        raise ValueError(
            f'annotation file {str(path)!r} has {len(unlisted)} categories that the config does not list: '
            f'{", ".join(unlisted[:5])}. Add them to metainfo=dict(classes=...) and num_classes, or set '
            'allow_unlisted_categories=True to leave their objects out.'
        )
    in_file_order = [name for name in found if name in classes]
    if in_file_order != classes:
        raise ValueError(
            f'annotation file {str(path)!r} has the classes of the config in another order: mmdet numbers labels as '
            f'the file does and would name them wrong. Set metainfo=dict(classes={tuple(in_file_order)}).'
        )


def _classes(dataset: Mapping[str, Any]) -> list[str]:
    """Class names of a dataset as mmdet understands its settings: a sequence, or the path of a file of lines."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if not classes:
        from mmdet.datasets import CocoDataset  # here, since a classification config needs no mmdet

        classes = CocoDataset.METAINFO['classes']
    if isinstance(classes, str):
        if not Path(classes).is_file():
            raise ValueError(f'classes = {classes!r}: no such file of names; a tuple of one name needs a comma.')
        classes = Path(classes).read_text(encoding='utf-8').splitlines()
    return list(classes)


def read_categories(path: Path) -> list[str]:
    """Category names of a COCO annotation file, read from the file's end without parsing the rest.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole COCO file.
    """
    if not path.is_file():
        raise FileNotFoundError(f'annotation file {str(path)!r} does not exist; check data_root and ann_file.')
    damaged = ValueError(f'annotation file {str(path)!r} is half-written or no COCO file; write or download it again.')
    if path.stat().st_size == 0:
        raise damaged
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.rfind(b'"categories"')
        whole = content[-64:].rstrip().endswith(b'}')
        text = content[start:].decode('utf-8', 'replace') if start >= 0 else ''
    try:
        categories = json.JSONDecoder().raw_decode(text.partition(':')[2].lstrip())[0]
        names = [category['name'] for category in categories]
    except (ValueError, TypeError, KeyError):
        raise damaged from None
    if not whole or not names:
        raise damaged
    return names
