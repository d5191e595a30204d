"""Pictures of detections for reports.

mmdet's visualizer is not used. It draws at the size of the picture, so that labels on the demo's small scenes cannot be
read. It also shifts the colours of masks at random, so that the same files would give a different page each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from pycocotools.coco import COCO

from upvit_mm.compare.predictions import Result, mask_of
from upvit_mm.compare.tags import MOST, Tag, place_tags
from upvit_mm.files import write_atomically

# Bright, for pictures of any brightness, with black letters on them.
COLOURS = ('#ff9f1c', '#2ec4f1', '#ff6fb5', '#9be22d', '#c79bff', '#ff6b5e', '#2fe0a5', '#ffe14d', '#6f9dff', '#f4f4f4')
INCHES = 1.9  # side of one picture
SIDE = 2.4  # of one picture of a sheet


@dataclass(frozen=True)
class Detection:
    """One object to draw.

    Attributes:
        box: ``(x1, y1, x2, y2)`` in pixels.
        category: name of its class.
        score: in [0, 1]; None = an annotated object.
        mask: ``(h, w)`` bool, or None.
    """

    box: tuple[float, float, float, float]
    category: str
    score: float | None = None
    mask: np.ndarray | None = None

    @property
    def label(self) -> str:
        """Class and score as text."""
        return self.category if self.score is None else f'{self.category} {self.score:.2f}'


Predictions = Mapping[int, Sequence[Detection]]  # by image id


def ground_truth(coco: COCO, image_ids: Sequence[int]) -> Predictions:
    """The annotated objects of some images; objects without ``segmentation``, as of VOC data, have no mask."""
    found = {}
    for image_id in image_ids:
        found[image_id] = [
            Detection(
                _corners(a['bbox']),
                coco.cats[a['category_id']]['name'],
                mask=coco.annToMask(a).astype(bool) if a.get('segmentation') else None,
            )
            for a in coco.loadAnns(coco.getAnnIds(image_id))
        ]
    return found


def predictions_of(results: Mapping[int, Sequence[Result]], coco: COCO, min_score: float) -> Predictions:
    """Results of ``read_results`` above a score, as objects to draw.

    Args:
        results: by image id.
        coco: the annotations, for names of categories.
        min_score: in [0, 1].

    Raises:
        ValueError: a damaged mask.
    """
    found = {}
    for image_id, entries in results.items():
        found[image_id] = [
            Detection(_corners(r['bbox']), coco.cats[r['category_id']]['name'], r['score'], mask_of(r))
            for r in entries
            if r['score'] >= min_score
        ]
    return found


def colours_of(sheet: Iterable[Iterable[Detection]]) -> dict[str, str]:
    """A colour for each class in some pictures, by name; from the eleventh on they repeat."""
    names = sorted({detection.category for detections in sheet for detection in detections})
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}


@dataclass(frozen=True)
class Sheet:
    """Detections of several networks on the same pictures.

    Attributes:
        title: what they are from.
        pictures: by image id, ``(h, w, 3)`` RGB.
        files: by image id, the file's name.
        columns: what is shown on each picture, by title.
        count: pictures of the whole data set.
    """

    title: str
    pictures: Mapping[int, np.ndarray]
    files: Mapping[int, str]
    columns: Mapping[str, Predictions]
    count: int

    @property
    def colours(self) -> dict[str, str]:
        """The colour of every class in the pictures."""
        return colours_of(found.get(key, ()) for found in self.columns.values() for key in self.pictures)

    def draw(self) -> Figure:
        """A row for each picture, with a title above each column."""
        heights = [picture.shape[0] / picture.shape[1] for picture in self.pictures.values()]
        figure = Figure(figsize=(SIDE * len(self.columns), SIDE * sum(heights)), layout='constrained')
        grid = figure.subplots(len(heights), len(self.columns), squeeze=False, gridspec_kw={'height_ratios': heights})
        panels = []
        for row, (key, picture) in zip(grid, self.pictures.items()):
            panels += [(axes, picture, found.get(key, ())) for axes, found in zip(row, self.columns.values())]
        for axes, title in zip(grid[0], self.columns):
            axes.set_title(title, fontsize=9)
        return _filled(figure, panels, self.colours)


def save_ground_truth_sheet(path: Path, data_root: Path, split: str, rows: int = 2, columns: int = 10) -> None:
    """A PNG of the first scenes of a digits data set with their annotations."""
    coco = COCO(data_root / 'annotations' / f'instances_{split}.json')
    image_ids = sorted(coco.imgs)[: rows * columns]
    objects = ground_truth(coco, image_ids)
    figure = Figure(figsize=(INCHES * columns, INCHES * rows), layout='constrained')
    pictures = [imread(data_root / split / coco.imgs[image_id]['file_name']) for image_id in image_ids]
    panels = list(zip(figure.subplots(rows, columns).flat, pictures, objects.values()))
    _filled(figure, panels, colours_of(objects.values()))
    write_atomically(path, lambda part: figure.savefig(part, format='png', dpi=80))


def draw_picture(picture: np.ndarray, detections: Sequence[Detection], colours: Mapping[str, str]) -> Figure:
    """One picture with detections, without axes or margins.

    Args:
        picture: ``(h, w, 3)``.
        detections: the objects; tags are written where they cover none.
        colours: by class; with one class alone, tags hold only scores.
    """
    height, width = picture.shape[:2]
    figure = Figure(figsize=(INCHES, INCHES * height / width))
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False)
    _draw(axes, picture, detections, colours)
    _tag(axes, detections, colours)
    return figure


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    """``(x1, y1, x2, y2)`` of COCO's ``(x, y, w, h)``."""
    x, y, width, height = box
    return x, y, x + width, y + height


def _filled(
    figure: Figure, panels: Sequence[tuple[Axes, np.ndarray, Sequence[Detection]]], colours: Mapping[str, str]
) -> Figure:
    """The figure with a picture and its objects in each panel."""
    for axes, picture, found in panels:
        _draw(axes, picture, found, colours)
    figure.draw_without_rendering()  # now the panels are in their places
    for axes, _, found in panels:
        _tag(axes, found, colours)
    return figure


def _draw(axes: Axes, picture: np.ndarray, detections: Sequence[Detection], colours: Mapping[str, str]) -> None:
    axes.imshow(picture)
    axes.set(xticks=[], yticks=[])
    width = 0.9 if len(detections) <= MOST else 0.5  # of lines, in points: a crowd has small objects
    masks = np.zeros((*picture.shape[:2], 4), np.uint8)  # one layer for all: a layer each fills the memory
    for detection in detections:
        colour = colours[detection.category]
        x1, y1, x2, y2 = detection.box
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width))
        if detection.mask is not None:
            masks[detection.mask] = (255 * np.array(to_rgba(colour, 0.35))).round()
    if masks.any():
        axes.imshow(masks)


def _tag(axes: Axes, detections: Sequence[Detection], colours: Mapping[str, str]) -> None:
    tags = []
    for found in sorted(detections, key=lambda found: -(found.score or 0)):
        score = '' if found.score is None else f'{found.score:.2f}'
        tags.append(Tag(found.box, score if len(colours) == 1 else found.label, colours[found.category]))
    place_tags(axes, tags)
