"""Settings and data that change the figures of a run without an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from upvit_mm.data.class_folders import has_class_folders
from upvit_mm.data.coco import examine
from upvit_mm.data.datasets import Dataset, coco_metrics, datasets_in
from upvit_mm.data.image_size import image_size
from upvit_mm.data.voc import ENDING, VocFolder

COUNTED = 100  # detections of a class in a picture that bbox_mAP of pycocotools counts at most


def shifts_in(cfg: Mapping[str, Any], parts: Sequence[str]) -> list[str]:
    """What changes the figures of a config without an error, one text each, with a remedy.

    These are: more objects in a picture than the detector gives; an evaluation on some of the pictures, or on training
    pictures; a classifier that is trained at another size than it is evaluated at.

    Args:
        cfg: of mmdet or mmpretrain, after ``check_part`` of these parts.
        parts: parts whose files are read: of ``'train'``, ``'val'``, ``'test'``.
    """
    texts = []
    for part in _evaluated(cfg, parts):
        for dataset in filter(_is_read, datasets_in(cfg, part)):
            rules = (_crowded, _counted, _subset, _judged_by_more)
            texts += [text for rule in rules for text in rule(cfg, dataset)]
        if 'train' in parts:
            texts += [*_of_training(cfg, part), *_other_size(cfg, part)]
    return texts


def _evaluated(cfg: Mapping[str, Any], parts: Sequence[str]) -> list[str]:
    """Parts for evaluation; without ``'test'`` where it is the same as ``'val'``."""
    same = all(cfg.get(f'val_{key}') == cfg.get(f'test_{key}') for key in ('dataloader', 'evaluator'))
    return [part for part in parts if part == 'val' or (part == 'test' and not (same and 'val' in parts))]


def _is_read(dataset: Dataset) -> bool:
    return dataset.reads_as is not None and dataset.is_here() and dataset.is_here(dataset.ann_file)


def _crowding(dataset: Dataset) -> dict[int, int]:
    """Number of pictures by their number of objects; empty for a classifier's data."""
    found: Mapping[str, int] = {}
    if dataset.reads_as == 'CocoDataset' and dataset.ann_file:
        found = examine(dataset.path(dataset.ann_file)).crowding
    elif dataset.reads_as == 'XMLDataset':
        found = VocFolder(dataset).crowding(dataset.classes or ())
    return {int(count): pictures for count, pictures in found.items()}


def _limits(cfg: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    settings = (cfg.get('model') or {}).get('test_cfg') or {}
    for place in ('', 'rcnn.', 'rpn.'):
        limit = (settings.get(place[:-1]) or {} if place else settings).get('max_per_img')
        if isinstance(limit, int) and limit > 0:
            yield f'model.test_cfg.{place}max_per_img', limit


def _crowded(cfg: Mapping[str, Any], dataset: Dataset) -> Iterator[str]:
    crowding = _crowding(dataset)
    most = max(crowding, default=0)
    if low := {place: limit for place, limit in _limits(cfg) if limit < most}:
        pictures, lost = _above(crowding, min(low.values()))
        objects = sum(count * number for count, number in crowding.items())
        yield (
            f'{dataset.part}: {pictures} of {sum(crowding.values())} pictures with objects have more than '
            f'{" and ".join(f"{place} = {limit}" for place, limit in low.items())} (up to {most}): '
            f'{lost / objects:.1%} of the objects cannot be found. Set {" and ".join(f"{p}={most}" for p in low)}.'
        )


def _above(crowding: Mapping[int, int], limit: int) -> tuple[int, int]:
    """Pictures with more objects than a limit, and how many objects are above it."""
    over = {count: pictures for count, pictures in crowding.items() if count > limit}
    return sum(over.values()), sum((count - limit) * pictures for count, pictures in over.items())


def _counted(cfg: Mapping[str, Any], dataset: Dataset) -> Iterator[str]:
    if dataset.reads_as != 'CocoDataset' or not any(coco_metrics(cfg, dataset.part)):
        return
    crowding = examine(dataset.path(dataset.ann_file)).crowding_by_class
    pictures, lost = _above({int(count): pictures for count, pictures in crowding.items()}, COUNTED)
    if pictures:
        yield (
            f'{dataset.part}: in {pictures} pictures a class has more than {COUNTED} objects. bbox_mAP and segm_mAP '
            f'count the best {COUNTED} detections of a class, so {lost} objects are missed. mAP_50 and mAP_75 count as '
            'many as proposal_nums of CocoMetric says last (1000): compare those.'
        )


def _subset(cfg: Mapping[str, Any], dataset: Dataset) -> Iterator[str]:
    if (chosen := dataset.settings.get('indices')) is None:
        return
    number = abs(chosen) if isinstance(chosen, int) else len(chosen)
    judged = any(metric.get('ann_file') for _, metric in coco_metrics(cfg, dataset.part))
    misses = ', and CocoMetric counts all objects of the other pictures as missed' if judged else ''
    yield (
        f'{dataset.part}: {dataset.place}.indices takes {number} pictures, so figures are not those of the whole '
        f'set{misses}. Leave indices out{", or write an annotation file of these pictures" if judged else ""}.'
    )


def _judged_by_more(cfg: Mapping[str, Any], dataset: Dataset) -> Iterator[str]:
    if dataset.reads_as != 'CocoDataset' or len(datasets_in(cfg, dataset.part)) > 1:
        return
    ours = len(examine(dataset.path(dataset.ann_file)).names)
    for place, metric in coco_metrics(cfg, dataset.part):
        path = Path(metric.get('ann_file') or '')
        if path.is_file() and (theirs := len(examine(path).names)) > ours:
            yield (
                f'{dataset.part}: {place}.ann_file has {theirs} pictures, {dataset.place} {ours}: all objects of the '
                f'others count as missed. Set {place}.ann_file={str(dataset.path(dataset.ann_file))!r}.'
            )


def _of_training(cfg: Mapping[str, Any], part: str) -> Iterator[str]:
    ours, theirs = (_pictures(cfg, name) for name in (part, 'train'))
    if shared := ours & theirs:
        what = 'the class folders' if all(Path(path).is_dir() for path in shared) else 'the pictures'
        yield (
            f'{part}: {len(shared)} of {len(ours)} of {what} are also training data ({min(shared)}), so figures are '
            'too good. Give it data of its own.'
        )


def _pictures(cfg: Mapping[str, Any], part: str) -> set[str]:
    """Paths of the pictures of a part, or of the folder that has its class folders."""
    found: set[str] = set()
    for dataset in filter(_is_read, datasets_in(cfg, part)):
        folder, names = dataset.path(dataset.images), ()
        if part == 'train' and dataset.settings.get('indices') is not None:
            continue  # it may leave out just these
        if dataset.reads_as == 'XMLDataset':
            folder, names = VocFolder(dataset).pictures, [f'{name}{ENDING}' for name in VocFolder(dataset).ids]
        elif dataset.reads_as == 'CocoDataset' and dataset.ann_file:
            names = examine(dataset.path(dataset.ann_file)).names
        elif has_class_folders(dataset):
            names = ('',)
        elif dataset.ann_file:
            lines = dataset.path(dataset.ann_file).read_text(encoding='utf-8').splitlines()
            names = [line.strip().rsplit(' ', 1)[0] for line in lines if line.strip()]
        root = str(folder.resolve())
        found |= {f'{root}/{name}' if name else root for name in names}
    return found


def _other_size(cfg: Mapping[str, Any], part: str) -> Iterator[str]:
    if cfg.get('default_scope') != 'mmpretrain':
        return  # detectors are trained at several sizes
    theirs, ours = (image_size(dataset.settings for dataset in datasets_in(cfg, name)) for name in ('train', part))
    if ours and theirs and ours != theirs:
        yield (
            f'{part}: pictures are {ours[0]}x{ours[1]} at the end of the pipeline, training pictures '
            f'{theirs[0]}x{theirs[1]}. Give both the same crop.'
        )
