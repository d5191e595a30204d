"""Checks before hours of training: the data of a config are there and fit its classes and its model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from upvit_mm.data.annotations import check_annotations, check_judges, turns
from upvit_mm.data.class_folders import (
    check_class_folders,
    check_list,
    check_same_folders,
    folder_names,
    has_class_folders,
)
from upvit_mm.data.class_numbers import check_class_numbers, head_numbers
from upvit_mm.data.datasets import PARTS, Dataset, datasets_in, datasets_of
from upvit_mm.data.detection_classes import check_categories, check_evaluator, check_listings
from upvit_mm.data.names import alike_text, listed, plain
from upvit_mm.data.picture_files import tried
from upvit_mm.data.shifts import shifts_in
from upvit_mm.data.voc import check_voc

__all__ = ['check_classes_of', 'check_datasets', 'check_part', 'datasets_of']

logger = logging.getLogger('upvit_mm')
SOURCES = {'data/digits': 'the embedded digits: python tools/prepare_digits.py', 'data/coco': 'docs/coco.md, step 1'}


def check_datasets(cfg: Mapping[str, Any], parts: Sequence[str], also: Mapping[str, int] | None = None) -> None:
    """Check every COCO, VOC and image-folder dataset that the given parts of a config read from this machine's disk.

    The training part is the reference: all parts must list its classes, and their files or folders must have them in
    its order. Heads must have the same number of classes. A category of an annotation file that the config does not
    list is an error, because mmdet drops its objects without a message; set ``allow_unlisted_categories = True`` in the
    config to train on a subset on purpose. Other faults of such a file are errors too
    (``annotations.check_annotations``); with ``allow_faulty_annotations = True`` those that mmdet can read are only
    reported. The log gets one line for each file, and a warning for what changes figures without an error
    (``shifts.shifts_in``). Datasets of other types, with another backend or at an address are
    not checked.

    Args:
        cfg: a config of mmdet or mmpretrain.
        parts: parts whose files are read: of ``'train'``, ``'val'``, ``'test'``. The lists of other parts must agree
            too.
        also: more numbers of classes that must agree with the data, by a description.

    Raises:
        FileNotFoundError: an annotation file or image folder is missing.
        ValueError: an annotation file is damaged; classes of a part are not those of the training part in the same
            order; a class folder has no images, or is not a class; heads have another number of classes.
    """
    for part in parts:
        for found in check_part(cfg, part):
            logger.info('%s', found)
    for part in PARTS:
        check_listings(cfg, part)
    for part in parts:
        if part != 'train':
            check_judges(cfg, part)
            check_evaluator(cfg, part)
    check_class_numbers(cfg, parts, also)
    for text in shifts_in(cfg, parts):
        logger.warning('%s', text)


def check_part(cfg: Mapping[str, Any], part: str) -> list[str]:
    """Check files, folders and classes of one part against the settings and against the training part.

    Returns:
        The content of its annotation files, one line each.

    Raises:
        FileNotFoundError: see ``check_datasets``.
        ValueError: see ``check_datasets``.
    """
    found = []
    for dataset in datasets_in(cfg, part):
        if dataset.reads_as is None and dataset.base is not None:
            logger.warning(
                '%s: %s reads data in its own way, so they are not checked', dataset.place, dataset.cls.__name__
            )
        if dataset.reads_as is None or not dataset.is_here():
            continue
        _check_folders(dataset)
        if dataset.reads_as == 'CocoDataset':
            if dataset.ann_file and dataset.is_here(dataset.ann_file):
                check_categories(cfg, dataset)
                found.append(check_annotations(cfg, dataset))
        elif dataset.reads_as == 'XMLDataset':
            if dataset.is_here(dataset.ann_file):
                found.append(check_voc(cfg, dataset, turns(cfg, dataset)))
        elif has_class_folders(dataset):
            check_class_folders(dataset)
            _check_like_training(cfg, dataset)
        elif dataset.ann_file and dataset.settings.get('with_label', True) and dataset.is_here(dataset.ann_file):
            check_list(dataset, head_numbers(cfg).get('model.head.num_classes'))
    check_listings(cfg, part)
    return found


def _check_folders(dataset: Dataset) -> None:
    for part in ['', *dataset.prefixes]:
        path = dataset.path(part)
        if dataset.is_here(part) and not path.is_dir():
            sources = [f' ({source})' for folder, source in SOURCES.items() if f'/{folder}/' in f'/{path.as_posix()}/']
            raise FileNotFoundError(
                f'data folder {str(path)!r} does not exist{tried(path)}: put the data there, link it, or set data_root'
                f'{"".join(sources)}.'
            )


def _check_like_training(cfg: Mapping[str, Any], dataset: Dataset) -> None:
    """The training folders are the reference if they are on this machine, even if they are not read now."""
    reference = next((other for other in datasets_in(cfg, 'train') if has_class_folders(other)), None)
    if reference is not None and reference.place != dataset.place and folder_names(reference):
        check_same_folders(dataset, reference)


def check_classes_of(
    meta: Mapping[str, Any], cfg: Mapping[str, Any], part: str, path: str, heads_anew: bool = False
) -> None:
    """Refuse a checkpoint whose model has learned other classes than a part of a config has, or another order of them.

    Args:
        meta: the checkpoint's ``meta``: ``dataset_meta`` of mmengine, or ``CLASSES`` of older files.
        cfg: the config that it is used with.
        part: the part: ``'train'``, ``'val'`` or ``'test'``.
        path: of the checkpoint, for the message.
        heads_anew: whether heads are trained from scratch, so that a warning is enough.

    Raises:
        ValueError: the classes differ; the message has both lists. A checkpoint or a config without a list passes.
            Names that differ only in case or blanks give a warning.
    """
    known = meta.get('dataset_meta') or {}
    theirs = known.get('classes') or known.get('CLASSES') or meta.get('CLASSES')
    ours = next(filter(None, map(_classes_of, datasets_in(cfg, part))), None)
    if not theirs or isinstance(theirs, str) or not ours or list(theirs) == ours:
        return
    theirs = list(theirs)
    text = (
        f'checkpoint {path!r} has learned {len(theirs)} classes ({listed(theirs)}), {part}_dataloader has {len(ours)} '
        f'({listed(ours)}){alike_text(ours, theirs)}'
    )
    if heads_anew:
        logger.warning('%s: its heads are trained from scratch', text)
    elif list(map(plain, theirs)) == list(map(plain, ours)):
        logger.warning('%s: treated as the same', text)
    else:
        order = ' in another order' if sorted(map(str, theirs)) == sorted(map(str, ours)) else ''
        raise ValueError(
            f'{text}{order}: the same labels mean other classes. Use the data and the classes that it was trained with.'
        )


def _classes_of(dataset: Dataset) -> list[Any] | None:
    """Names by label: those of the settings, otherwise those of the folders."""
    if dataset.reads_as is None:
        return None
    if dataset.classes is None and has_class_folders(dataset):
        return folder_names(dataset) or None
    return dataset.classes
