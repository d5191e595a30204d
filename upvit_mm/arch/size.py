"""Sizes of images, grids of tokens, and windows of attention."""

from __future__ import annotations

import re

Size = tuple[int, int]  # height, width in pixels
Grid = tuple[int, int]  # H, W in tokens


def parse_size(text: str) -> Size:
    """``'224'`` (a square) or ``'800x1333'`` (height x width), in pixels; images are stretched to exactly that.

    Raises:
        ValueError: neither.
    """
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)?', text):
        raise ValueError(f'size {text!r}: must be SIDE or HEIGHTxWIDTH in pixels, as 224 or 800x1333.')
    height, _, width = text.partition('x')
    return int(height), int(width or height)


def size_text(size: Size) -> str:
    """``'800x1333'``."""
    return f'{size[0]}x{size[1]}'


def four_global_blocks(depth: int) -> tuple[int, ...]:
    """The last block of each of four equal runs of blocks; all blocks when there are fewer than five."""
    return tuple(sorted({(k + 1) * depth // 4 - 1 for k in range(4)} - {-1}))
