"""Image folders and lists of mmpretrain: labels are positions in the sorted folder names, or numbers in a list."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upvit_mm.data.coco import check_names
from upvit_mm.data.datasets import Dataset
from upvit_mm.data.names import alike, alike_text, listed, plain
from upvit_mm.data.picture_files import PICTURE_ENDINGS, check_litter, counts_text, is_litter, look_through, tried

logger = logging.getLogger('upvit_mm')
ENDINGS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # that mmpretrain reads by default
SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'test'}


def has_class_folders(dataset: Dataset) -> bool:
    """Whether the labels of a dataset are folders on a local disk."""
    labelled = dataset.split != 'test' and dataset.settings.get('with_label', True)
    read = dataset.reads_as == 'CustomDataset' and dataset.is_here(dataset.images)
    return bool(read and labelled and not dataset.ann_file)


def folder_names(dataset: Dataset) -> list[str]:
    """Names of a dataset's class folders, in the order of their labels, without folders that are not classes."""
    root = dataset.path(dataset.images)
    found = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted(name for name in found if not is_litter(name))


def check_class_folders(dataset: Dataset) -> None:
    """Refuse folders that would shift labels, and classes without images.

    Raises:
        ValueError: no class folders, folders of other programs, folders without images, or names that the config does
            not list.
    """
    root, names = dataset.path(dataset.images), folder_names(dataset)
    litter = [str(path) for path in root.iterdir() if path.is_dir() and is_litter(path.name)]
    check_litter(root, litter, 'mmpretrain takes them for classes, so that labels are shifted')
    if not names:
        raise ValueError(f'data folder {str(root)!r} has no class folders; set data_prefix to the folder that has.')
    if len(names) > 1 and set(names) <= SPLITS:
        raise ValueError(
            f'data folder {str(root)!r}: {", ".join(names)} are parts of the data, not classes; set data_prefix to one '
            'of them.'
        )
    _check_pictures(dataset, root, names)
    _check_listed(dataset, names)


def _check_pictures(dataset: Dataset, root: Path, names: Sequence[str]) -> None:
    endings = [ending.lower() for ending in dataset.settings.get('extensions', ENDINGS)]
    found = {name: look_through(root / name, endings) for name in names}
    litter = [path for contents in found.values() for path in contents.litter]
    check_litter(root, litter, 'their images count as images of the class')
    unread = sum((Counter(contents.unread) for contents in found.values()), Counter())
    known = tuple(ending for ending in sorted(unread) if ending in PICTURE_ENDINGS)
    more = f'set extensions={(*endings, *known)} in {dataset.place}' if known else 'write them as .png or .jpg'
    empty = [name for name in names if not found[name].pictures]
    unreadable = [name for name in empty if found[name].unread]
    text = f'data folder {str(root)!r}: {len(empty)} of {len(names)} class folders have no image'
    if unreadable:
        raise ValueError(
            f'{text} that mmpretrain reads ({", ".join(endings)}): {listed(unreadable)}, which hold '
            f'{counts_text(found[unreadable[0]].unread)}; {more}.'
        )
    if empty and dataset.part == 'train':
        raise ValueError(
            f'{text} ({", ".join(endings)}): {listed(empty)}. Put images there, or remove what is not a class.'
        )
    if empty:
        logger.warning('%s (%s): these classes are not evaluated', text, listed(empty))
    if unread:
        logger.warning('data folder %s: %s files are not read by mmpretrain; %s', root, counts_text(unread), more)


def _check_listed(dataset: Dataset, names: Sequence[str]) -> None:
    """Compare the folders with the class names of the settings, which mmpretrain uses only as names."""
    root, classes = str(dataset.path(dataset.images)), dataset.classes
    if classes is None or classes == list(names):
        return
    if len(classes) != len(names):
        whose = f'{dataset.place} lists' if dataset.given_classes else f'{dataset.cls.__name__} has'
        remedy = 'list the names of the folders' if dataset.given_classes else "take type='CustomDataset'"
        raise ValueError(f'data folder {root!r} has {len(names)} class folders, {whose} {len(classes)}: {remedy}.')
    if dataset.given_classes is None:
        return  # ImageNet's names for its numbered folders
    hint = alike_text(classes, names)
    if {plain(name) for name in classes} & {plain(name) for name in names}:
        raise ValueError(
            f'{dataset.place}: classes = {listed(classes)} are not the class folders of {root!r} in their order '
            f'({listed(names)}), which decides the labels{hint}. Set metainfo=dict(classes={tuple(names)}).'
        )
    logger.warning(
        '%s: classes and folders of %s have different names; make sure that %r is %s, and so on',
        dataset.place,
        root,
        names[0],
        classes[0],
    )


def check_same_folders(dataset: Dataset, reference: Dataset) -> None:
    """Refuse a part whose class folders are not those of another part: its labels would mean other classes.

    Args:
        dataset: the part.
        reference: the part to compare with, the training part.

    Raises:
        ValueError: the folders differ; the message lists missing and additional classes.
    """
    ours, theirs = folder_names(dataset), folder_names(reference)
    missing, more = ([name for name in a if name not in b] for a, b in ((theirs, ours), (ours, theirs)))
    if not missing and not more:
        return
    root, other = dataset.path(dataset.images), reference.path(reference.images)
    parts = []
    if renamed := alike(missing, more):
        parts.append(f'rename {", ".join(f"{more!r} to {name!r}" for name, more in renamed.items())}')
    if left := [name for name in missing if name not in renamed]:
        parts.append(f'put images of {listed(left)} there, or make empty folders for them')
    if left := [name for name in more if name not in renamed.values()]:
        parts.append(f'remove {listed(left)}, or put training images of them in {str(other)!r}')
    raise ValueError(
        f'data folder {str(root)!r} ({dataset.place}) has other class folders than {str(other)!r} '
        f'({reference.place}), so that labels mean other classes: {listed(missing) or "none"} missing, '
        f'{listed(more) or "none"} more{alike_text(missing, more)}. To correct it, {"; ".join(parts)}.'
    )


def check_list(dataset: Dataset, num_classes: int | None) -> None:
    """Refuse a list of images with labels outside the classes; only lists of text lines are read.

    Args:
        dataset: a dataset with an annotation file of lines ``PATH LABEL``.
        num_classes: number of classes of the config's head; None where it has none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line without a label, a label outside of 0 to ``num_classes - 1``, or pictures that are missing.
    """
    path = dataset.path(dataset.ann_file)
    if not path.is_file():
        raise FileNotFoundError(
            f'annotation file {str(path)!r} does not exist{tried(path)}; check data_root and ann_file.'
        )
    labels: list[Any] = [line.strip().rsplit(' ', 1) for line in path.read_text(encoding='utf-8').splitlines()]
    for number, words in enumerate(labels, 1):
        if len(words) < 2 or not words[1].lstrip('-').isdigit():
            raise ValueError(
                f'annotation file {str(path)!r}, line {number}: {" ".join(words)!r} has no label; each line must be a '
                'path, a blank and a number.'
            )
    if dataset.is_here(dataset.images):
        check_names(
            dataset.path(dataset.images),
            [words[0] for words in labels],
            f'annotation file {str(path)!r}',
            'data_prefix',
        )
    if not labels or num_classes is None:
        return
    least, most = (choose(int(words[1]) for words in labels) for choose in (min, max))
    if least < 0 or most >= num_classes:
        shifted = ' Labels count from 0: subtract 1 from each.' if (least, most) == (1, num_classes) else ''
        raise ValueError(
            f'annotation file {str(path)!r} has labels from {least} to {most}: with num_classes = {num_classes} they '
            f'must lie in 0 to {num_classes - 1}.{shifted}'
        )
