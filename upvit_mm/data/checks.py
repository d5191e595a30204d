"""Checks, before hours of training, that the data a config points at are there and fit its classes."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

COCO_TYPES = ('CocoDataset', 'mmdet.CocoDataset')


def check_datasets(cfg: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Check every COCO dataset and class-folder dataset on the local disk that the given parts of a config read.

    A category of the annotation file that the config does not list raises, since mmdet drops its objects without a
    word; set ``allow_unlisted_categories = True`` in the config to train on a subset on purpose.

    Args:
        cfg: a config of mmdet or mmpretrain.
        parts: of ``'train'``, ``'val'``, ``'test'``.

    Raises:
        FileNotFoundError: an annotation file or image folder is missing.
        ValueError: an annotation file is damaged or has categories that the config does not list, or the reverse.
    """
    for part in parts:
        for dataset in _datasets(cfg.get(f'{part}_dataloader')):
            root = Path(dataset.get('data_root') or '')
            if '://' in str(dataset.get('data_root')):
                continue  # an object store; mmengine reports what it does not find
            _check_folders(dataset, root)
            if dataset.get('type') in COCO_TYPES and dataset.get('ann_file'):
                _check_coco(dataset, root / dataset['ann_file'], bool(cfg.get('allow_unlisted_categories')))


def _datasets(node: Any) -> Iterator[Mapping[str, Any]]:
    """The innermost dataset settings below a dataloader, through wrappers such as RepeatDataset."""
    if not isinstance(node, Mapping):
        return
    inner = node.get('dataset') or node.get('datasets')
    if inner is None:
        yield node
    else:
        for child in inner if isinstance(inner, Sequence) else [inner]:
            yield from _datasets(child)


def _check_folders(dataset: Mapping[str, Any], root: Path) -> None:
    prefix = dataset.get('data_prefix')
    prefixes = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix] if isinstance(prefix, str) else []
    for folder in {root, *(root / p for p in prefixes if isinstance(p, str))}:
        if not folder.is_dir():
            raise FileNotFoundError(
                f'data folder {str(folder)!r} does not exist: put the data there, link it, or set data_root '
                '(the embedded digits: python tools/prepare_digits.py).'
            )


def _check_coco(dataset: Mapping[str, Any], path: Path, allow_unlisted: bool) -> None:
    found = read_categories(path)
    classes = (dataset.get('metainfo') or {}).get('classes') or _default_classes()
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


def _default_classes() -> tuple[str, ...]:
    from mmdet.datasets import CocoDataset  # here, since a classification config needs no mmdet

    return tuple(CocoDataset.METAINFO['classes'])


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
