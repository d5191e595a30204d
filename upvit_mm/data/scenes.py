"""Compose pictures of digits: bright colours, slightly rotated and overlapping, on dark textured backgrounds.

All random numbers come from the given generator, so that a picture depends only on its seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from upvit_mm.data.digits import Digits

INK = 0.5  # a pixel belongs to a digit from this opacity on
MAX_ANGLE = 15.0  # degrees
DARK, BRIGHT = (10.0, 110.0), (100.0, 255.0)  # range of the colours of backgrounds and of digits, per channel
MIN_CONTRAST = 120.0  # Euclidean RGB distance of a digit's colour from the mean background
MIN_VISIBLE = 0.6  # share of each digit that later ones must leave visible
MIN_AREA = 16  # pixels
PLACEMENT_TRIES = 30


@dataclass(frozen=True)
class Instance:
    """A digit in a scene.

    Attributes:
        label: 0 to 9.
        mask: ``(size, size)`` bool, the pixels where it is visible.
    """

    label: int
    mask: np.ndarray


def compose_scene(
    digits: Digits, rng: np.random.Generator, size: int, count: tuple[int, int], side: tuple[int, int]
) -> tuple[np.ndarray, list[Instance]]:
    """One scene with some digits, later ones over earlier ones.

    Args:
        digits: the digits to draw from.
        rng: source of every choice.
        size: side of the picture in pixels.
        count: fewest and most digits; fewer are placed when there is no room.
        side: shortest and longest length in pixels of a digit's longer side, drawn log-uniformly.

    Returns:
        The picture ``(size, size, 3)`` uint8 and its instances from back to front, with exact visible masks.
    """
    canvas = texture(rng, size)
    background = canvas.mean(axis=(0, 1))
    labels: list[int] = []
    masks: list[np.ndarray] = []  # visible part
    areas: list[int] = []  # whole digit
    for _ in range(rng.integers(count[0], count[1] + 1)):
        for _ in range(PLACEMENT_TRIES):
            index = int(rng.integers(len(digits)))
            opacity = _place(glyph(digits.images[index], rng, _log_uniform(rng, side)), rng, size)
            mask = opacity >= INK
            visible = [m & ~mask for m in masks]
            hidden = any(v.sum() < MIN_VISIBLE * area for v, area in zip(visible, areas))
            if mask.sum() >= MIN_AREA and not hidden:
                break
        else:
            continue
        colour = _contrasting(rng, background)
        canvas += opacity[..., None] * (colour - canvas)
        masks = [*visible, mask]
        areas.append(int(mask.sum()))
        labels.append(int(digits.labels[index]))
    picture = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return picture, [Instance(label, mask) for label, mask in zip(labels, masks)]


def compose_single(image: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """One digit ``(28, 28)`` of 45 to 90 % of ``size`` on a background, ``(size, size, 3)`` uint8."""
    canvas = texture(rng, size)
    opacity = _place(glyph(image, rng, rng.uniform(0.45, 0.9) * size), rng, size)
    canvas += opacity[..., None] * (_contrasting(rng, canvas.mean(axis=(0, 1))) - canvas)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two colours blended by smooth noise of three scales, with grain: ``(size, size, 3)`` float64, 0 to 255."""
    blend = np.zeros((size, size))
    for cells in (3, 7, 17):
        noise = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        blend += np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC)) / 3
    first, second = rng.uniform(*DARK, 3), rng.uniform(*DARK, 3)
    canvas = first + blend[..., None] * (second - first)
    return np.clip(canvas + rng.normal(0, 6, (size, size, 1)), 0, 255)


def glyph(image: np.ndarray, rng: np.random.Generator, side: float) -> np.ndarray:
    """A digit cut to its ink, scaled to ``side`` pixels on its longer side, rotated: opacity ``(h, w)`` in [0, 1]."""
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    ink = Image.fromarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = side / max(ink.size)
    ink = ink.resize([max(round(length * scale), 1) for length in ink.size], Image.Resampling.BICUBIC)
    ink = ink.rotate(rng.uniform(-MAX_ANGLE, MAX_ANGLE), Image.Resampling.BICUBIC, expand=True)
    return np.asarray(ink, dtype=np.float64) / 255


def _place(opacity: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """The opacity at a random place of an empty ``(size, size)`` picture; it never crosses the border."""
    opacity = opacity[:size, :size]
    top, left = (int(rng.integers(size - length + 1)) for length in opacity.shape)
    placed = np.zeros((size, size))
    placed[top : top + opacity.shape[0], left : left + opacity.shape[1]] = opacity
    return placed


def _contrasting(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    while True:
        colour = rng.uniform(*BRIGHT, 3)
        if np.linalg.norm(colour - background) >= MIN_CONTRAST:
            return colour


def _log_uniform(rng: np.random.Generator, limits: tuple[int, int]) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))
