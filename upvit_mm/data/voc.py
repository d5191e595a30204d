"""Annotations in VOC's form, one XML file for each picture: what mmdet would drop or misread without a message."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from upvit_mm.data.coco import WAY_OUT, check_names, check_sizes
from upvit_mm.data.datasets import Dataset
from upvit_mm.data.names import alike, alike_text, listed
from upvit_mm.data.picture_files import tried

logger = logging.getLogger('upvit_mm')
ENDING = '.jpg'  # the only one that mmdet reads
SIDES = ('xmin', 'ymin', 'xmax', 'ymax')


@dataclass(frozen=True)
class VocObject:
    """One object of an XML file.

    Attributes:
        picture: name of the file without its ending.
        name: the class.
        box: left, top, right and bottom in pixels, whole numbers as mmdet reads them.
        difficult: whether it is marked so; mmdet ignores it then.
    """

    picture: str
    name: str
    box: tuple[int, ...]
    difficult: bool = False


@dataclass(frozen=True)
class VocFolder:
    """The annotations of one dataset of ``XMLDataset`` or ``VOCDataset``.

    Attributes:
        dataset: its settings.
    """

    dataset: Dataset

    @property
    def ids(self) -> list[str]:
        """Names of pictures and XML files without endings.

        Raises:
            FileNotFoundError: the list is missing.
        """
        path = self.dataset.path(self.dataset.ann_file)
        if not self.dataset.ann_file or not path.is_file():
            raise FileNotFoundError(
                f'{self.dataset.place}.ann_file = {str(path)!r}{tried(path)}: no such list of names; check data_root '
                'and ann_file.'
            )
        return path.read_text(encoding='utf-8').splitlines()

    @property
    def root(self) -> Path:
        """The folder of the two below."""
        prefix = self.dataset.settings.get('data_prefix') or {}
        return self.dataset.path((prefix.get('sub_data_root') or '') if isinstance(prefix, Mapping) else '')

    @property
    def pictures(self) -> Path:
        """The folder of the pictures."""
        return self.root / self.dataset.settings.get('img_subdir', 'JPEGImages')

    @property
    def annotations(self) -> Path:
        """The folder of the XML files."""
        return self.root / self.dataset.settings.get('ann_subdir', 'Annotations')

    @cached_property
    def contents(self) -> tuple[list[tuple[int, int] | None], list[VocObject]]:
        """Width and height of every picture, None where the file does not say; and all objects.

        Raises:
            ValueError: a file is no XML, or lacks what mmdet reads.
        """
        read = [_read(self.annotations / f'{name}.xml', name) for name in self.ids]
        return [size for size, _ in read], [found for _, objects in read for found in objects]

    @property
    def objects(self) -> list[VocObject]:
        """All objects, of any name."""
        return self.contents[1]

    def crowding(self, classes: Sequence[Any]) -> dict[str, int]:
        """Number of pictures by their number of objects of these classes (as text)."""
        counts = Counter(found.picture for found in self.objects if found.name in classes)
        return {str(count): pictures for count, pictures in Counter(counts.values()).items()}


def _read(path: Path, picture: str) -> tuple[tuple[int, int] | None, list[VocObject]]:
    try:
        root = ElementTree.parse(path).getroot()
        size = root.find('size')
        size = None if size is None else (int(size.findtext('width')), int(size.findtext('height')))
        objects = [
            VocObject(
                picture,
                found.findtext('name'),
                tuple(int(float(found.find('bndbox').findtext(k))) for k in SIDES),
                difficult=bool(int(found.findtext('difficult') or 0)),
            )
            for found in root.findall('object')
        ]
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f'annotation file {str(path)!r} cannot be read ({error}): it must have size with width and height, and for '
            f'each object name and bndbox with {", ".join(SIDES)}.'
        ) from error
    return size, objects


def check_voc(cfg: Mapping[str, Any], dataset: Dataset, turns: bool) -> str:
    """Refuse annotations that mmdet cannot read, or would read with objects lost or of no size.

    Args:
        cfg: the config; ``allow_unlisted_categories`` and ``allow_faulty_annotations`` count as for COCO files.
        dataset: an ``XMLDataset`` or ``VOCDataset`` on a local disk.
        turns: whether the loader rotates pictures by their EXIF orientation.

    Returns:
        One line: the numbers of pictures and objects.

    Raises:
        FileNotFoundError: the list of names is missing.
        ValueError: no classes are listed; files are missing or damaged; names that the config does not list; boxes
            without width or height; pictures of another size.
    """
    folder, source = VocFolder(dataset), f'annotation list {str(dataset.path(dataset.ann_file))!r}'
    names = folder.ids
    check_names(folder.annotations, [f'{name}.xml' for name in names], source, 'ann_subdir, sub_data_root')
    _check_pictures(folder, names, source)
    _check_classes(cfg, folder, source)
    _check_boxes(cfg, folder, source)
    sizes = {name: size for name, size in zip(names, folder.contents[0]) if size}
    try:
        files = [f'{name}{ENDING}' for name in sizes]
        check_sizes(folder.pictures, files, list(sizes.values()), turns, source)
    except ValueError as error:
        if not cfg.get(WAY_OUT):
            raise ValueError(f'{error} Or set {WAY_OUT} = True in the config.') from error
        logger.warning('%s', error)
    return f'{dataset.path(dataset.ann_file)}: {len(names)} images, {len(folder.objects)} objects'


def _check_pictures(folder: VocFolder, names: Sequence[str], source: str) -> None:
    other = sorted({path.suffix for name in names[:1] for path in folder.pictures.glob(f'{name}.*')} - {ENDING})
    if other and not (folder.pictures / f'{names[0]}{ENDING}').is_file():
        raise ValueError(
            f'{source}: pictures in {str(folder.pictures)!r} end in {other[0]}; mmdet reads VOC data only from '
            f'{ENDING}. Convert them, or write the annotations in COCO format.'
        )
    check_names(folder.pictures, [f'{name}{ENDING}' for name in names], source, 'img_subdir, sub_data_root')


def _check_classes(cfg: Mapping[str, Any], folder: VocFolder, source: str) -> None:
    classes, counts = folder.dataset.classes, Counter(found.name for found in folder.objects)
    if not classes:
        raise ValueError(
            f'{folder.dataset.place} lists no classes; set metainfo=dict(classes={tuple(map(str, counts))}).'
        )
    unlisted = {name: count for name, count in counts.items() if name not in classes}
    missing = [name for name in classes if name not in counts]
    if unlisted:
        text = (
            f'{source}: {sum(unlisted.values())} of {len(folder.objects)} objects have names that '
            f'{folder.dataset.place} does not list: {listed(list(unlisted))}{alike_text(unlisted, classes)}; mmdet '
            'drops them without a message'
        )
        similar = alike(unlisted, missing)
        if not cfg.get('allow_unlisted_categories'):
            wanted = [next((u for u, c in similar.items() if c == name), name) for name in classes]
            right = tuple([name for name in wanted if name in counts] + [n for n in unlisted if n not in wanted])
            raise ValueError(
                f'{text}. Set metainfo=dict(classes={right}) in all parts and num_classes={len(right)} in every head, '
                'or set allow_unlisted_categories=True to leave them out.'
            )
        if similar:
            logger.warning('%s', text)
    if missing and folder.dataset.part == 'train':
        logger.warning('%s has no object of %d classes: %s', source, len(missing), listed(missing))


def _check_boxes(cfg: Mapping[str, Any], folder: VocFolder, source: str) -> None:
    wrong = [found for found in folder.objects if found.box[2] <= found.box[0] or found.box[3] <= found.box[1]]
    if not wrong:
        return
    sides = ', '.join(f'{key} {value}' for key, value in zip(SIDES, wrong[0].box))
    text = (
        f'{source}: {len(wrong)} of {len(folder.objects)} objects have boxes without width or height '
        f'({wrong[0].picture}.xml, {wrong[0].name}: {sides})'
    )
    if not cfg.get(WAY_OUT):
        raise ValueError(
            f'{text}. Correct or remove them, set filter_cfg=dict(bbox_min_size=1) in the training dataset to ignore '
            f'them and {WAY_OUT} = True in the config.'
        )
    logger.warning('%s', text)
