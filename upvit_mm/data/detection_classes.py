"""Classes of detection data, compared between parts.

mmdet numbers the classes that the config lists in the order of the categories *in the file*, not in the config's order
(``CocoDataset.load_data_list``). CocoMetric does the same with its own file. So all parts must list the same classes,
and all files must have them in the same order. The training part is the reference.
"""

from __future__ import annotations

import filecmp
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upvit_mm.data.categories import matched_name
from upvit_mm.data.coco import examine
from upvit_mm.data.datasets import PARTS, Dataset, coco_metrics, datasets_in, is_open_vocabulary
from upvit_mm.data.names import alike_text, listed

ORDER = 'mmdet numbers labels in the order of the categories in each file'


def coco_datasets(cfg: Mapping[str, Any]) -> list[Dataset]:
    """All datasets of a config that mmdet reads as COCO files; the first is the reference."""
    return [dataset for part in PARTS for dataset in datasets_in(cfg, part) if dataset.reads_as == 'CocoDataset']


# -------------------------------------------------------------------------- datasets


def check_categories(cfg: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuse an annotation file whose categories would give labels that mean other classes than in training.

    Args:
        cfg: the config; with ``allow_unlisted_categories`` a file may have more categories than the config lists.
        dataset: one of ``coco_datasets``, with its file on a local disk.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, lacks classes, has other classes or another order; the message says how to correct
            it.
    """
    names = [name for _, name in examine(dataset.path(dataset.ann_file)).categories]
    reference = dataset if is_open_vocabulary(cfg) else coco_datasets(cfg)[0]
    if dataset.place == reference.place:
        _check_own_classes(cfg, dataset, names)
    else:
        _check_like(cfg, dataset, reference, names)


def _check_own_classes(cfg: Mapping[str, Any], dataset: Dataset, names: Sequence[str]) -> None:
    """The reference: its file counts as right, and the config's list must fit it."""
    path, classes = dataset.path(dataset.ann_file), _classes(dataset)
    allowed = bool(cfg.get('allow_unlisted_categories'))
    missing = [name for name in classes if name not in names]
    unlisted = [name for name in names if name not in classes]
    kept = [name for name in names if name in classes]
    right = kept if allowed and kept else list(names)
    places = ', '.join(dict.fromkeys(other.place for other in coco_datasets(cfg)))
    remedy = f'Set num_classes={len(right)} in every head and metainfo=dict(classes={tuple(right)}) in {places}'
    if missing:
        raise ValueError(
            f'annotation file {str(path)!r} lacks {len(missing)} of the {len(classes)} classes of the config: '
            f'{listed(missing)}; it has {listed(names)}{alike_text(missing, names)}. {remedy}.'
        )
    if unlisted and not allowed:
        raise ValueError(
            f'annotation file {str(path)!r} has {len(unlisted)} categories that the config does not list: '
            f'{listed(unlisted)}. {remedy}, or set allow_unlisted_categories=True to leave their objects out.'
        )
    if kept != classes:
        raise ValueError(
            f'annotation file {str(path)!r} has the classes of the config in another order: {ORDER}, and would give '
            f'them wrong. {remedy}.'
        )


def _check_like(cfg: Mapping[str, Any], dataset: Dataset, reference: Dataset, names: Sequence[str]) -> None:
    """Another part: its file must have the classes of the reference, in the same order."""
    path, classes = dataset.path(dataset.ann_file), _classes(reference)
    missing = [name for name in classes if name not in names]
    unlisted = [name for name in names if name not in classes]
    kept = [name for name in names if name in classes]
    others = [other.place for other in coco_datasets(cfg) if _classes(other) != classes]
    listing = f'give {listed(others)} the metainfo of {reference.place}' if others else ''
    if missing or kept != classes:
        what = f'has the classes of {reference.place} in another order ({listed(kept)} instead of {listed(classes)})'
        if missing:
            hint = alike_text(missing, names)
            what = f'lacks {len(missing)} of the {len(classes)} classes of {reference.place}: {listed(missing)}{hint}'
        remedy = ', and '.join(filter(None, (_command(cfg, path, reference), listing)))
        raise ValueError(
            f'annotation file {str(path)!r} ({dataset.place}) {what}: {ORDER}, so labels would mean other classes. '
            f'{remedy}.'
        )
    if unlisted and not cfg.get('allow_unlisted_categories'):
        raise ValueError(
            f'annotation file {str(path)!r} ({dataset.place}) has {len(unlisted)} categories that {reference.place} '
            f'does not list: {listed(unlisted)}. Set allow_unlisted_categories=True to leave their objects out; to '
            'detect them, training needs them too.'
        )


def _command(cfg: Mapping[str, Any], path: Path, reference: Dataset) -> str:
    """The command to run, and where to set the file that it writes."""
    like = reference.path(reference.ann_file) if reference.is_here(reference.ann_file) else 'TRAINING_FILE'
    metrics = [found for part in PARTS[1:] for found in _judges(cfg, part)]
    users = [other.place for other in coco_datasets(cfg) if other.path(other.ann_file) == path]
    users += [place for place, metric in metrics if Path(metric['ann_file']) == path]
    command = shlex.join(['python', 'tools/match_categories.py', str(path), '--like', str(like)])
    return f'Run: {command} ; then name {matched_name(path).name} instead of {path.name} as ann_file of {listed(users)}'


def check_listings(cfg: Mapping[str, Any], part: str) -> None:
    """Refuse a part that lists other classes than the first part that lists any, even if its files are not read now.

    Raises:
        ValueError: the lists differ; the message names dataset and classes.
    """
    everything = [] if is_open_vocabulary(cfg) else [d for name in PARTS for d in datasets_in(cfg, name)]
    datasets = [dataset for dataset in everything if _lists_labels(dataset)]
    for dataset in datasets:
        ours, theirs = _classes(dataset), _classes(datasets[0])
        if dataset.part != part or ours == theirs:
            continue
        same = 'in another order' if sorted(map(str, ours)) == sorted(map(str, theirs)) else f'{len(theirs)} others'
        raise ValueError(
            f'{dataset.place} lists {len(ours)} classes ({listed(ours)}), {datasets[0].place} {same} '
            f'({listed(theirs)}){alike_text(ours, theirs)}. Give {dataset.place} the metainfo of {datasets[0].place}.'
        )


def _lists_labels(dataset: Dataset) -> bool:
    """Whether the class names of its settings say what its labels mean."""
    numbered = dataset.reads_as == 'CustomDataset' and dataset.ann_file and dataset.given_classes
    return bool(dataset.reads_as in ('CocoDataset', 'XMLDataset') or numbered)


def _classes(dataset: Dataset) -> list[Any]:
    return dataset.classes or []


# ------------------------------------------------------------------------ evaluators


def check_evaluator(cfg: Mapping[str, Any], part: str) -> list[str]:
    """Refuse a CocoMetric with annotations of other images or other categories than its dataset.

    Args:
        cfg: of mmdet.
        part: ``'val'`` or ``'test'``.

    Returns:
        The annotation files used for evaluation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its categories have another order, or it is not the dataset's file or one that contains it.
    """
    read = [dataset for dataset in datasets_in(cfg, part) if dataset.reads_as == 'CocoDataset' and dataset.ann_file]
    datasets = [dataset for dataset in read if dataset.is_here(dataset.ann_file) and not is_open_vocabulary(cfg)]
    judges = []
    for place, metric in _judges(cfg, part) if datasets else ():
        path = Path(metric['ann_file'])
        categories = examine(path).categories
        if metric.get('sort_categories'):
            categories = sorted(categories)
        classes, right = _classes(datasets[0]), datasets[0].path(datasets[0].ann_file)
        found = [name for _, name in categories if name in classes]
        if found != classes:
            raise ValueError(
                f'{place}.ann_file = {str(path)!r} has {listed(found)} of the classes, in this order, '
                f'{datasets[0].place} has {listed(classes)}: {ORDER}, so detections count for other classes. '
                f'Set {place}.ann_file={str(right)!r}, without sort_categories.'
            )
        for dataset in datasets:
            if not _holds(path, dataset.path(dataset.ann_file)):
                raise ValueError(
                    f'{place}.ann_file = {path}, but the images are of {dataset.path(dataset.ann_file)}: mAP would '
                    f'mean nothing. Set {place}.ann_file={str(dataset.path(dataset.ann_file))!r}.'
                )
        judges.append(str(path))
    return judges


def _judges(cfg: Mapping[str, Any], part: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(place, metric) for place, metric in coco_metrics(cfg, part) if metric.get('ann_file')]


def _holds(judge: Path, path: Path) -> bool:
    """Whether an annotation file is or contains another one: its pictures with the same ids and objects."""
    if judge.samefile(path) or filecmp.cmp(judge, path, shallow=False):
        return True
    theirs, ours = _pictures(judge), _pictures(path)
    labelled = any(objects for _, objects in ours.values())
    return all(
        number in theirs and theirs[number][0] == name and (not labelled or theirs[number][1] == objects)
        for number, (name, objects) in ours.items()
    )


def _pictures(path: Path) -> dict[Any, tuple[str, list[str]]]:
    """File name and boxes of every picture, by its id."""
    content = json.loads(path.read_bytes())
    pictures = {image.get('id'): (image.get('file_name'), []) for image in content['images']}
    for row in content.get('annotations', ()):
        if row.get('image_id') in pictures:
            pictures[row['image_id']][1].append(str((row.get('category_id'), row.get('bbox'))))
    for _, objects in pictures.values():
        objects.sort()
    return pictures
