"""Pictures of detections for reports.

mmdet's visualizer is not used. It draws at the size of the picture, so that labels on the demo's small scenes cannot be
read. It also shifts the colours of masks at random, so that the same files would give a different page each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from upvit_mm.files import write_atomically

COLOURS = ('tab:orange', 'tab:cyan', 'tab:pink', 'tab:olive', 'tab:purple', 'tab:red', 'tab:green', 'tab:blue')
INCHES = 1.9  # side of one picture


@dataclass(frozen=True)
class Detection:
    """One object to draw.

    Attributes:
        box: ``(x1, y1, x2, y2)`` in pixels.
        label: its text.
        mask: ``(h, w)`` bool, or None.
    """

    box: tuple[float, float, float, float]
    label: str
    mask: np.ndarray | None = None


Predictions = Mapping[int, Sequence[Detection]]  # by image id


def ground_truth(coco: COCO, image_ids: Sequence[int]) -> Predictions:
    """The annotated objects of some images; objects without ``segmentation``, as of VOC data, have no mask."""
    found = {}
    for image_id in image_ids:
        found[image_id] = [
            Detection(
                _corners(a['bbox']),
                coco.cats[a['category_id']]['name'],
                coco.annToMask(a).astype(bool) if a.get('segmentation') else None,
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
            Detection(_corners(r['bbox']), f'{coco.cats[r["category_id"]]["name"]} {r["score"]:.2f}', mask_of(r))
            for r in entries
            if r['score'] >= min_score
        ]
    return found


def save_ground_truth_sheet(path: Path, data_root: Path, split: str, rows: int = 2, columns: int = 10) -> None:
    """A PNG of the first scenes of a digits data set with their annotations."""
    coco = COCO(data_root / 'annotations' / f'instances_{split}.json')
    image_ids = sorted(coco.imgs)[: rows * columns]
    figure = Figure(figsize=(INCHES * columns, INCHES * rows), layout='constrained')
    for axis, image_id in zip(figure.subplots(rows, columns).flat, image_ids):
        picture = imread(data_root / split / coco.imgs[image_id]['file_name'])
        _draw(axis, picture, ground_truth(coco, [image_id])[image_id])
    write_atomically(path, lambda part: figure.savefig(part, format='png', dpi=80))


def draw_picture(picture: np.ndarray, detections: Sequence[Detection]) -> Figure:
    """One picture ``(h, w, 3)`` with detections, without axes or margins."""
    height, width = picture.shape[:2]
    figure = Figure(figsize=(INCHES, INCHES * height / width))
    _draw(figure.add_axes((0, 0, 1, 1), frame_on=False), picture, detections)
    return figure


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    """``(x1, y1, x2, y2)`` of COCO's ``(x, y, w, h)``."""
    x, y, width, height = box
    return x, y, x + width, y + height


def _draw(axis: Axes, picture: np.ndarray, detections: Sequence[Detection]) -> None:
    axis.imshow(picture)
    axis.set(xticks=[], yticks=[])
    for i, detection in enumerate(detections):
        colour = COLOURS[i % len(COLOURS)]
        x1, y1, x2, y2 = detection.box
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour))
        style = dict(facecolor=colour, edgecolor='none', pad=0.5, alpha=0.8)
        axis.text(x1, y1, detection.label, color='white', size=6, va='bottom', bbox=style)
        if detection.mask is not None:
            overlay = np.zeros((*detection.mask.shape, 4))
            overlay[detection.mask] = to_rgba(colour, 0.5)
            axis.imshow(overlay)
