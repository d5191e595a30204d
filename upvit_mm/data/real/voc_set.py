"""A folder in VOC's form as COCO files, with pictures sorted by part; BCCD is one of them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upvit_mm.data.coco import check_names
from upvit_mm.data.names import alike, listed
from upvit_mm.data.real.parts import PartCounts, Track, write_coco
from upvit_mm.data.real.pictures import read_picture
from upvit_mm.data.voc import VocFolder
from upvit_mm.data.voc_to_coco import ANNOTATIONS, LISTS, PICTURES, coco_of, folder_of, lists_of, voc_root

BCCD_CLASSES = ('RBC', 'WBC', 'Platelets')
BCCD = 'BCCD, blood cells, github.com/Shenggan/BCCD_Dataset, MIT licence'
NO_BOX = 'boxes without width or height'
OTHER = 'of other classes'


def write_bccd(source: Path, folder: Path, track: Track) -> dict[str, PartCounts]:
    """``write_voc`` with the three classes of BCCD.

    Args:
        source: a clone of github.com/Shenggan/BCCD_Dataset, or its folder ``BCCD``.
        folder, track: as there.
    """
    return write_voc(source, folder, track, BCCD_CLASSES, about=BCCD)


def write_voc(
    source: Path,
    folder: Path,
    track: Track,
    classes: Sequence[str] | None = None,
    train: str | None = None,
    val: str | None = None,
    about: str = 'from annotations in VOC form',
) -> dict[str, PartCounts]:
    """Write ``images/PART/*`` and ``annotations/instances_PART.json``, with boxes as in ``voc_to_coco``.

    Parts are ``train`` and ``val``, and ``test`` if there is a list of this name beside them. Left out and counted are
    objects of classes that are not asked for, and boxes without width or height.

    Args:
        source: a folder of ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``, or one above it.
        folder: of the set.
        track: wraps an iterable for a progress bar.
        classes: categories, in order; None = all that occur, sorted.
        train, val: lists in ``ImageSets/Main``; None = found by their names.
        about: one line on source and licence.

    Raises:
        FileNotFoundError: a picture is missing.
        ValueError: the source has another form; lists share pictures; classes do not occur or are alike; a file cannot
            be read; a picture has another size than its XML file says.
    """
    root = voc_root(source) if source.is_dir() else None
    if root is None or not (root / LISTS).is_dir():
        raise ValueError(
            f'source {str(source)!r} has no VOC data: must be a folder with {ANNOTATIONS}/*.xml, {PICTURES}/* and '
            f'{LISTS}/train.txt and val.txt; found {_found(root or source)}.'
        )
    chosen = lists_of(root, train, val)
    tests = [path.name for path in (root / LISTS).glob('test.txt') if path.name not in chosen.values()]
    folders = {part: folder_of(root, part, name) for part, name in [*chosen.items(), *(('test', n) for n in tests)]}
    _check_lists(root, folders)
    for part in folders.values():
        check_names(part.annotations, [f'{name}.xml' for name in part.ids], _list_of(part), 'the list')
    names = _classes(folders, classes, source)
    counts = {}
    for part, voc in folders.items():
        content = coco_of(voc, names)
        _copy(voc, content['images'], folder / 'images' / part, track, part)
        kept = [row for row in content['annotations'] if min(row['bbox'][2:]) > 1]  # xmin = xmax covers one pixel
        left_out = {
            NO_BOX: len(content['annotations']) - len(kept),
            OTHER: len(voc.objects) - len(content['annotations']),
        }
        rows = [{**row, 'id': k} for k, row in enumerate(kept, 1)]
        counts[part] = write_coco(folder, part, {**content, 'annotations': rows}, about, left_out)
    return counts


def _found(folder: Path) -> str:
    if not folder.is_dir():
        return 'a file' if folder.exists() else 'no such folder'
    return listed(sorted(path.name for path in folder.iterdir())) or 'an empty folder'


def _list_of(part: VocFolder) -> str:
    return f'annotation list {str(part.dataset.path(part.dataset.ann_file))!r}'


def _check_lists(root: Path, folders: Mapping[str, VocFolder]) -> None:
    """Refuse pictures that are listed twice: in one list, or in two parts."""
    counts = Counter(name for part in folders.values() for name in part.ids)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        lists = ', '.join(Path(part.dataset.ann_file).name for part in folders.values())
        raise ValueError(
            f'lists in {str(root / LISTS)!r} ({lists}) name {len(twice)} pictures more than once: {listed(twice)}. '
            'Each picture must be in one part; correct the lists, or choose others with --train NAME and --val NAME.'
        )
    for name, part in folders.items():
        if not part.ids:
            raise ValueError(f'{_list_of(part)} of {name} is empty; put names of pictures into it.')


def _classes(folders: Mapping[str, VocFolder], wanted: Sequence[str] | None, source: Path) -> list[str]:
    counts = Counter(found.name for part in folders.values() for found in part.objects)
    missing = [name for name in wanted or () if name not in counts]
    if missing:
        raise ValueError(
            f'classes = {", ".join(wanted)}: no object of {str(source)!r} is {" or ".join(missing)}; there are '
            f'{listed(sorted(counts))}.'
        )
    names = list(wanted or sorted(counts))
    if pairs := alike(names, names):
        raise ValueError(
            f'source {str(source)!r}: classes {", ".join(f"{a!r} and {b!r}" for a, b in pairs.items())} differ only in '
            'case or blanks; correct the XML files, or list the right ones with --classes.'
        )
    return names


def _copy(voc: VocFolder, images: Sequence[Mapping[str, Any]], to: Path, track: Track, part: str) -> None:
    """Copy pictures as they are; each is decoded and must have the size of its XML file.

    Raises:
        ValueError: a picture cannot be read, or some have other sizes.
    """
    to.mkdir(parents=True)
    wrong = []
    for image in track(images, description=f'{part} pictures', total=len(images)):
        path = voc.pictures / image['file_name']
        size = read_picture(path).size
        if size != (image['width'], image['height']):
            said = f'{image["width"]}x{image["height"]}'
            wrong.append(f'{image["file_name"]} has {size[0]}x{size[1]} pixels, its XML file says {said}')
        shutil.copyfile(path, to / image['file_name'])
    if wrong:
        raise ValueError(
            f'{_list_of(voc)}: {len(wrong)} of {len(images)} pictures have another size than their XML files say '
            f'({wrong[0]}). Correct size in these files; where pictures were resized, scale the boxes too.'
        )
