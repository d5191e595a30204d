"""The nuclei of the 2018 Data Science Bowl: from one folder of masks for each picture to COCO files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upvit_mm.data.names import listed
from upvit_mm.data.prepare import coco_annotation
from upvit_mm.data.real.nuclei_split import LENGTH, TRAIN, VAL
from upvit_mm.data.real.parts import PartCounts, Track, write_coco
from upvit_mm.data.real.pictures import read_picture
from upvit_mm.data.scenes import Instance

CATEGORIES = [{'id': 1, 'name': 'nucleus'}]
ABOUT = 'nuclei, 2018 Data Science Bowl, stage 1 train (BBBC038), CC0'
FORM = 'one folder for each picture, with images/*.png (one picture) and masks/*.png (one for each nucleus)'
SHORT = 12  # characters of an id of 64 in the names of written pictures
COLOURED = 1.0  # mean of the largest minus the smallest channel; grey pictures have 0, stained ones 12 and more
BRIGHT = 128  # median of a grey picture's pixels; fluorescence has up to 44, bright field 226 and more
EMPTY = 'empty masks'
LISTED = {name: part for part, names in (('train', TRAIN), ('val', VAL)) for name in names.split()}


def write_nuclei(source: Path, folder: Path, track: Track, val_fraction: float | None = None) -> dict[str, PartCounts]:
    """Write ``images/PART/*.png`` and ``annotations/instances_PART.json`` with a mask (RLE) for each nucleus.

    Masks stay as they are, also where they overlap; empty ones are left out and counted. Each image of a file has its
    ``kind``, by ``kind_of``.

    Args:
        source: ``stage1_train``, or the folder above it.
        folder: of the set.
        track: wraps an iterable for a progress bar.
        val_fraction: share of validation pictures, drawn by their ids; None = the split of ``nuclei_split``, with the
            pictures that it does not list as part ``test``.

    Raises:
        ValueError: the source has another form; a picture or mask cannot be read or they have different sizes; a part
            would be empty.
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise ValueError(f'val_fraction = {val_fraction}: must be between 0 and 1.')
    folders = _picture_folders(source)
    parts: dict[str, list[Path]] = {'train': [], 'val': [], 'test': []}
    for path in folders:
        parts[part_of(path.name, val_fraction)].append(path)
    if not parts['train'] or not parts['val']:
        found = f'{len(parts["train"])} training and {len(parts["val"])} validation pictures of {len(folders)}'
        raise ValueError(f'source {str(source)!r}: {found}; choose a share for validation: --val-fraction 0.2.')
    return {part: _write_part(paths, part, folder, track) for part, paths in parts.items() if paths}


def part_of(name: str, val_fraction: float | None = None) -> str:
    """The part of a picture: always the same for an id, whatever other pictures there are.

    Args:
        name: id of the picture, the name of its folder.
        val_fraction: see ``write_nuclei``; with it there is no part ``test``.
    """
    if val_fraction is not None:
        drawn = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8  # even in 0 to 1
        return 'val' if drawn < val_fraction else 'train'
    return LISTED.get(name[:LENGTH], 'test')


def kind_of(pixels: np.ndarray) -> str:
    """The kind of a micrograph by its colours: ``'stained'`` if it has any, else by its background.

    The rule gives the kinds of all 567 pictures of the training and validation part.

    Args:
        pixels: ``(h, w, 3)`` uint8.
    """
    if (pixels.max(axis=2) - pixels.min(axis=2)).mean() > COLOURED:
        return 'stained'
    return 'brightfield' if np.median(pixels) > BRIGHT else 'fluorescence'


def _picture_folders(source: Path) -> list[Path]:
    for root in (source, source / 'stage1_train'):
        inside = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        whole = [path for path in inside if (path / 'images').is_dir() and (path / 'masks').is_dir()]
        if whole:
            break
    else:
        hint = ' Unpack it first.' if source.is_file() else ''
        found = listed(sorted(path.name for path in source.iterdir())) if source.is_dir() else 'no such folder'
        raise ValueError(
            f'source {str(source)!r} has no nuclei: must be the folder stage1_train, {FORM}; found '
            f'{"a file" if source.is_file() else found or "an empty folder"}.{hint}'
        )
    partly = [path.name for path in inside if path not in whole and (path / 'images').is_dir()]
    if partly:
        raise ValueError(
            f'source {str(root)!r}: {len(partly)} of {len(inside)} folders have no masks ({listed(partly)}); must be '
            f'{FORM}. Unpack stage1_train again.'
        )
    return whole


def _write_part(paths: Sequence[Path], part: str, folder: Path, track: Track) -> PartCounts:
    to = folder / 'images' / part
    to.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for number, path in enumerate(track(paths, description=f'{part} pictures', total=len(paths)), 1):
        picture = read_picture(_picture_in(path)).convert('RGB')
        name = f'{path.name[:SHORT] if len(path.name) == 64 else path.name}.png'
        picture.save(to / name)
        kind = kind_of(np.asarray(picture))
        images.append(dict(id=number, file_name=name, width=picture.width, height=picture.height, kind=kind))
        for file in sorted((path / 'masks').glob('*.png')):
            mask = np.asarray(read_picture(file).convert('L')) > 0
            if mask.shape != (picture.height, picture.width):
                raise ValueError(
                    f'mask {str(file)!r} has {mask.shape[1]}x{mask.shape[0]} pixels, its picture has '
                    f'{picture.width}x{picture.height}; both must have the same size.'
                )
            if mask.any():
                rows.append(coco_annotation(Instance(0, mask), number, len(rows) + 1))
            else:
                left_out[EMPTY] += 1
    content = dict(images=images, annotations=rows, categories=CATEGORIES)
    return write_coco(folder, part, content, ABOUT, left_out)


def _picture_in(folder: Path) -> Path:
    found = sorted((folder / 'images').glob('*.png'))
    if len(found) != 1:
        raise ValueError(f'folder {str(folder / "images")!r} has {len(found)} .png files; must have one picture.')
    return found[0]
