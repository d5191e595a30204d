"""Whether the pictures of an annotation file are on disk and have the size that it gives."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
from PIL import Image, UnidentifiedImageError

logger = logging.getLogger('upvit_mm')
SAMPLE = 200  # pictures that are opened
EXAMPLES = 3
LOOKED_THROUGH = 20_000  # number of files below the folder that are searched for missing pictures
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
ORIENTATION = 0x0112  # EXIF's number of the orientation
OTHER_SIZE = 'Write width and height of the actual pictures; where pictures were resized, scale boxes and masks too.'
REMEDIES = {  # for rotated pictures, by whether the loader rotates them
    True: 'Its EXIF orientation rotates it when it is loaded, but the boxes fit the stored picture: write pictures '
    "without orientation, or set color_type='color_ignore_orientation' in LoadImageFromFile of all pipelines.",
    False: 'The pipeline ignores its EXIF orientation, but the boxes fit the rotated picture: leave color_type '
    'of LoadImageFromFile out.',
}


def check_names(folder: Path, names: Sequence[str], source: str, setting: str = 'data_prefix=dict(img=...)') -> None:
    """Refuse a file with pictures that are missing on disk.

    Args:
        folder: of the pictures, on this machine's disk.
        names: relative to it.
        source: that names them, for the message.
        setting: setting of the dataset that names the folder.

    Raises:
        ValueError: how many are missing, the first ones, and where they are if that is near.
    """
    missing = _missing(folder, names)
    if missing:
        some = ', '.join(repr(name) for name in missing[:EXAMPLES])
        raise ValueError(
            f'{source}: {len(missing)} of {len(names)} pictures are not in {str(folder)!r} ({some}). '
            f'{_where(folder, missing, setting)}'
        )


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    """List each folder once: checking each of 100,000 files takes minutes on some disks."""
    by_folder = defaultdict(list)
    for name in names:
        by_folder[os.path.dirname(name)].append(name)  # noqa: PTH120 (pathlib takes five times as long)
    missing = []
    for part, members in by_folder.items():
        try:
            with os.scandir(folder / part) as entries:
                found = {entry.name for entry in entries}
        except OSError:
            found = set()
        missing += [name for name in members if os.path.basename(name) not in found]  # noqa: PTH119
    return missing


def _where(folder: Path, missing: Sequence[str], setting: str) -> str:
    wanted = {_plain(PurePosixPath(name.replace('\\', '/')).name): name for name in missing}
    for count, path in enumerate(folder.rglob('*')):
        if count > LOOKED_THROUGH:
            break
        if (name := wanted.get(_plain(path.name))) is None or not path.is_file():
            continue
        if path.name != PurePosixPath(name).name:
            return f'There is {path.name!r}, with other letters: rename the files, or correct file_name.'
        return f'{path.name!r} is in {str(path.parent)!r}: correct {setting}, data_root or the file names.'
    return f'Put them there, or correct data_root and {setting}.'


def _plain(name: str) -> str:
    """A name without the differences that some systems ignore: case, and the encoding of accents."""
    return unicodedata.normalize('NFC', name).casefold()


def check_sizes(folder: Path, names: Sequence[str], sizes: Sequence[tuple[int, int]], turns: bool, source: str) -> None:
    """Open some pictures, evenly spread, and refuse a file that gives other sizes.

    Args:
        folder: of the pictures.
        names: relative to it.
        sizes: ``(width, height)`` in pixels, from the file.
        turns: whether the loader rotates pictures by their EXIF orientation.
        source: that names them, for the message.

    Raises:
        ValueError: a picture cannot be read or has another size; the message has the count, the first one and the
            remedy.
    """
    step = max(len(names) // SAMPLE, 1)
    wrong, unreadable, unclear, looked = [], [], [], range(0, len(names), step)
    for k in looked:
        try:
            size, orientation = _size_of(folder / names[k])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
            unreadable.append(f'{names[k]!r}: {error}')
            continue
        turned = orientation in TURNED
        loaded = size[::-1] if turned and turns else size
        if loaded != tuple(sizes[k]):
            wrong.append((names[k], loaded, sizes[k], turned))
        elif turns and orientation != 1 and (not turned or size[0] == size[1]):
            unclear.append(names[k])
    if unreadable:
        raise ValueError(
            f'{source}: {len(unreadable)} of {len(looked)} pictures that were opened cannot be read ({unreadable[0]}). '
            'Write or download them again.'
        )
    if wrong:
        name, loaded, said, turned = wrong[0]
        text = (
            f'{source}: {len(wrong)} of {len(looked)} pictures that were opened have another size than it says '
            f'({name!r} is loaded as {loaded[0]}x{loaded[1]}, the file says {said[0]}x{said[1]}).'
        )
        raise ValueError(f'{text} {REMEDIES[turns] if turned else OTHER_SIZE}')
    if unclear:
        logger.warning(
            '%s: %d of %d pictures that were opened (%r) are rotated or mirrored by their EXIF orientation when they '
            'are loaded, which their size does not show; look at a painted one to check that boxes fit.',
            source,
            len(unclear),
            len(looked),
            unclear[0],
        )


def _size_of(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation (1 = upright)."""
    try:
        with Image.open(path) as picture:
            plain = picture.format == 'PNG' and 'exif' not in picture.info  # else Pillow decodes the picture
            return picture.size, 1 if plain else picture.getexif().get(ORIENTATION, 1)
    except UnidentifiedImageError:
        pixels = cv2.imread(str(path))  # reads some formats that Pillow does not
        if pixels is None:
            raise
        return pixels.shape[1::-1], 1


def turns_pictures(pipeline: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the first loader of a pipeline rotates pictures by their EXIF orientation, as mmcv does by default."""
    for transform in pipeline or ():
        kind = transform.get('color_type')
        if kind is not None:
            return kind != 'unchanged' and 'ignore_orientation' not in kind
    return True
