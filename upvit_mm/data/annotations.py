"""Check the annotation files of a config: do they have what its datasets and metrics need?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import TRANSFORMS

from upvit_mm.data.coco import WAY_OUT, check_names, check_sizes, examine, turns_pictures
from upvit_mm.data.datasets import Dataset, coco_metrics, transforms_of
from upvit_mm.registry import is_type

logger = logging.getLogger('upvit_mm')


def check_annotations(cfg: Mapping[str, Any], dataset: Dataset) -> str:
    """Refuse a dataset whose annotation file cannot be read, or would be read with objects lost, moved or wrongly
    named.

    Args:
        cfg: the config; with ``allow_faulty_annotations`` objects that mmdet would lose are only reported.
        dataset: one that mmdet reads as a COCO file, on a local disk.

    Returns:
        One line: the numbers of images and objects, and what mmdet leaves out by design.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or has faults; count, example and remedy of each.
    """
    settings, path = dataset.settings, dataset.path(dataset.ann_file)
    file, tolerant = examine(path), bool(cfg.get(WAY_OUT))
    file.check(list(_uses(cfg, dataset)), tolerant)
    source = f'annotation file {str(path)!r}'
    folder = dataset.path(dataset.images)
    if dataset.is_here(dataset.images):
        check_names(folder, file.names, source)
        try:
            check_sizes(folder, file.names, file.sizes, turns(cfg, dataset), source)
        except ValueError as error:
            if not tolerant:
                raise ValueError(f'{error} Or set {WAY_OUT} = True in the config.') from error
            logger.warning('%s', error)
    filters = None if settings.get('test_mode') else settings.get('filter_cfg')
    return file.summary(dataset.classes or (), filters)


def check_judges(cfg: Mapping[str, Any], part: str) -> None:
    """The same for annotation files that only a metric reads.

    Args:
        cfg: the config.
        part: ``'val'`` or ``'test'``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or has faults.
    """
    for _, metric in coco_metrics(cfg, part):
        if path := metric.get('ann_file'):
            examine(Path(path)).check(list(_uses_of_metric(metric)), bool(cfg.get(WAY_OUT)))


def _uses(cfg: Mapping[str, Any], dataset: Dataset) -> Iterator[str]:
    """What a dataset's file is used for, from ``coco.USES``."""
    if dataset.part == 'train':
        yield 'train'
    for transform in transforms_of(dataset.settings.get('pipeline')):
        loads = is_type(transform.get('type'), 'LoadAnnotations', registry=TRANSFORMS, scope=cfg.get('default_scope'))
        if loads and transform.get('with_mask'):
            yield 'masks'
    for _, metric in coco_metrics(cfg, dataset.part):
        if not metric.get('ann_file'):  # then it evaluates with the dataset's annotations
            yield from _uses_of_metric(metric)


def _uses_of_metric(metric: Mapping[str, Any]) -> Iterator[str]:
    if not metric.get('format_only'):
        yield 'judge'
        kinds = metric.get('metric', 'bbox')
        if 'segm' in ([kinds] if isinstance(kinds, str) else kinds):
            yield 'masks'


def turns(cfg: Mapping[str, Any], dataset: Dataset) -> bool:
    """Whether a dataset's pipeline rotates pictures by their EXIF orientation."""
    loaders = [
        transform
        for transform in transforms_of(dataset.settings.get('pipeline'))
        if is_type(transform.get('type'), 'LoadImageFromFile', registry=TRANSFORMS, scope=cfg.get('default_scope'))
    ]
    return turns_pictures(loaders)
