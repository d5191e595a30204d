"""Look at somebody's own data: where the parts are, their classes, and what a config must know of the pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from upvit_mm.data.class_folders import ENDINGS, SPLITS, folder_names
from upvit_mm.data.coco import CocoFile, examine
from upvit_mm.data.datasets import Dataset
from upvit_mm.data.picture_files import PICTURE_ENDINGS, is_litter, look_through

NAMES = {'train': ('train', 'training', 'trainval'), 'val': ('val', 'valid', 'validation', 'dev', 'test')}  # best first
DEEP = 3  # levels below the data folder in which files and folders are looked for
SAMPLE = 500  # pictures whose size is read


@dataclass(frozen=True)
class OwnPart:
    """Training or validation data.

    Attributes:
        settings: where they are: ``ann_file`` and ``data_prefix`` of a dataset, and ``extensions`` where it needs them.
        pictures: their number.
    """

    settings: dict[str, Any]
    pictures: int


@dataclass(frozen=True)
class OwnData:
    """What was found in a data folder.

    Attributes:
        root: the folder.
        classes: names by label.
        train, val: the parts.
        size: usual ``(shorter, longer)`` side of the pictures in pixels: medians.
        most: largest number of objects in one picture, crowds not counted; 0 for classification.
    """

    root: Path
    classes: tuple[str, ...]
    train: OwnPart
    val: OwnPart
    size: tuple[int, int]
    most: int = 0


# --------------------------------------------------------------------------- both tasks


def is_part(name: str, part: str) -> int | None:
    """How well a name of a file or folder fits a part: 0 = best, None = not at all."""
    words = re.split(r'[^a-z]+', name.lower())
    return next((k for k, wanted in enumerate(NAMES[part]) if wanted in words), None)


def choose(names: Sequence[str], part: str, given: str | None, what: str) -> str:
    """The file or folder of a part.

    Args:
        names: those that were found, relative to the data folder.
        part: ``'train'`` or ``'val'``.
        given: what the user named; None = the one whose name fits.
        what: what they are, for messages.

    Raises:
        ValueError: none fits, or several; the message says what to do.
    """
    if given is not None:
        if given not in names:
            raise ValueError(f'{part} = {given!r}: must be one of the {what}: {", ".join(names) or "none was found"}.')
        return given
    fits = {name: fit for name in names if (fit := is_part(_label(name), part)) is not None}
    best = [name for name, fit in fits.items() if fit == min(fits.values())]
    if len(instances := [name for name in best if Path(name).name.startswith('instances')]) == 1:
        best = instances  # of COCO: not captions or keypoints
    if len(best) == 1:
        return best[0]
    found = f'{len(best)} {what} fit: {", ".join(best)}' if best else f'of the {what} ({", ".join(names)}) none fits'
    split = ' Without validation data, move about a tenth of the pictures to a part of their own.' if not best else ''
    raise ValueError(f'{part} data: {found}. Give the right one as --{part} NAME.{split}')


def _label(name: str) -> str:
    """What says the part: the file's own name, else the path (``train/_annotations.coco.json``)."""
    own = Path(name).name
    return own if any(is_part(own, part) is not None for part in NAMES) else name


def folders_below(root: Path) -> Iterator[Path]:
    """A folder and those below it, nearest first, without folders of other programs."""
    level = [root]
    for _ in range(DEEP + 1):
        yield from level
        level = [p for folder in level for p in sorted(folder.iterdir()) if p.is_dir() and not is_litter(p.name)]


def _usual(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    short, long = np.median(np.sort(np.array(sizes), axis=1), axis=0)
    return round(short), round(long)


# ----------------------------------------------------------------------------- detection


def look_at_coco(root: Path, train: str | None = None, val: str | None = None) -> OwnData:
    """Data with COCO annotation files and folders of pictures anywhere near them.

    Args:
        root: the data folder.
        train, val: annotation files, relative to it; None = found by their names.

    Raises:
        ValueError: a part is missing or not clear, a file is damaged, or its pictures are not found.
    """
    folders = list(folders_below(root))
    names = [str(path.relative_to(root)) for folder in folders for path in sorted(folder.glob('*.json'))]
    chosen = {part: choose(names, part, given, 'JSON files') for part, given in (('train', train), ('val', val))}
    files = {part: examine(root / name) for part, name in chosen.items()}
    parts = {}
    for part, file in files.items():
        folder = _folder_of(file, part, folders)
        prefix = '' if folder == root else f'{folder.relative_to(root).as_posix()}/'
        parts[part] = OwnPart(dict(ann_file=chosen[part], data_prefix=dict(img=prefix)), len(file.names))
    return own_detection_data(root, parts, files)


def own_detection_data(root: Path, parts: dict[str, OwnPart], files: dict[str, CocoFile]) -> OwnData:
    """The same from parts whose annotation files were read."""
    most = max(int(count) for file in files.values() for count in [0, *file.crowding])
    classes = tuple(name for _, name in files['train'].categories)
    return OwnData(root, classes, parts['train'], parts['val'], _usual(files['train'].sizes), most)


def _folder_of(file: CocoFile, part: str, folders: Sequence[Path]) -> Path:
    """The folder of a file's pictures: one that has all of them, named like the part if there are several."""
    near = [folder for folder in folders if file.names and (folder / file.names[0]).is_file()]
    if not near:
        raise ValueError(
            f'annotation file {file.path!r}: its first picture {(file.names or ("none",))[0]!r} is in no folder of '
            f'{str(folders[0])!r}, down to {DEEP} levels. Put the pictures there.'
        )

    def rank(folder: Path) -> tuple[bool, bool]:
        return not all((folder / name).is_file() for name in file.names), is_part(folder.name, part) is None

    return min(near, key=rank)


# ------------------------------------------------------------------------ classification


def look_at_class_folders(root: Path, train: str | None = None, val: str | None = None) -> OwnData:
    """Data with a folder for each part, and in it a folder for each class.

    Args:
        root: the data folder.
        train, val: folders of the parts, relative to it; None = found by their names.

    Raises:
        ValueError: a part is missing or not clear, or holds no class folders or no pictures.
    """
    names = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not is_litter(path.name)]
    chosen = {}
    for part, given in (('train', train), ('val', val)):
        if given is None and not SPLITS & {name.lower() for name in names}:
            raise ValueError(
                f'data folder {str(root)!r} has {len(names)} folders, none of them a part: put the class folders into '
                'train/, and about a tenth of the pictures of each class into folders of the same names in val/.'
            )
        chosen[part] = choose(names, part, given, 'folders')
    endings = {ending for part in chosen.values() for ending in _endings(root / part)}
    more = {} if endings <= set(ENDINGS) else dict(extensions=(*ENDINGS, *sorted(endings - set(ENDINGS))))
    parts, classes = {}, {}
    for part, name in chosen.items():
        count = look_through(root / name, (*ENDINGS, *endings)).pictures
        parts[part] = OwnPart(dict(data_prefix=name, **more), count)
        classes[part] = folder_names(Dataset(part, f'{part} data', dict(data_root=str(root), data_prefix=name)))
        if not classes[part] or not count:
            raise ValueError(f'{part} data: {str(root / name)!r} must have a folder of pictures for each class.')
    return OwnData(root, tuple(classes['train']), parts['train'], parts['val'], _usual(_sizes(root / chosen['train'])))


def _endings(folder: Path) -> set[str]:
    """Endings of its pictures, in lower case."""
    others = look_through(folder, ()).others
    return {ending for ending in others if ending in PICTURE_ENDINGS}


def _sizes(folder: Path) -> list[tuple[int, int]]:
    """Sizes of pictures, evenly spread."""
    paths = sorted(path for path in folder.glob('*/**/*') if path.suffix.lower() in PICTURE_ENDINGS)
    sizes = []
    for path in paths[:: max(len(paths) // SAMPLE, 1)]:
        with Image.open(path) as picture:
            sizes.append(picture.size)
    return sizes
