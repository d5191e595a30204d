"""Sizes of images in pixels, grids of tokens, and windows of attention."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Size = tuple[int, int]  # height, width in pixels
Grid = tuple[int, int]  # H, W in tokens


def parse_size(text: str) -> Size:
    """``'224'`` (a square) or ``'800x1333'`` (height x width), in pixels; images are stretched to exactly that.

    Raises:
        ValueError: another form.
    """
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)?', text):
        raise ValueError(f'size {text!r}: must be SIDE or HEIGHTxWIDTH in pixels, for example 224 or 800x1333.')
    height, _, width = text.partition('x')
    return int(height), int(width or height)


def size_text(size: Size) -> str:
    """``'800x1333'``."""
    return f'{size[0]}x{size[1]}'


@dataclass(frozen=True)
class Windows:
    """Where the blocks of a plain ViT attend within windows, and where globally (arXiv 2203.16527, sec. 3).

    Attributes:
        size: side of a window in tokens; 0 = every block attends globally.
        global_blocks: blocks that still attend globally. They count from 0; negative numbers count from the end. None =
            the last block of each of four equal runs.

    Raises:
        ValueError: a size below 0.
    """

    size: int = 0
    global_blocks: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.size < 0:
            raise ValueError(f'window_size = {self.size}: must be 0 (global attention) or more.')
        if self.global_blocks is not None:
            object.__setattr__(self, 'global_blocks', tuple(self.global_blocks))

    def __bool__(self) -> bool:
        """Whether any block attends within windows."""
        return self.size > 0

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of a backbone: ``window_size`` and ``global_blocks``; what is not set is left out."""
        told = {'window_size': self.size, 'global_blocks': self.global_blocks}
        return {name: value for name, value in told.items() if value is not None} if self else {}

    def sizes(self, depth: int) -> tuple[int, ...]:
        """The side of the windows of each block of a stage; 0 where a block attends globally.

        Raises:
            ValueError: a global block that the stage does not have, or the same one twice.
        """
        if not self:
            return (0,) * depth
        whole = four_global_blocks(depth) if self.global_blocks is None else self.global_blocks
        found = {j % depth for j in whole if -depth <= j < depth}
        if len(found) < len(whole):
            raise ValueError(
                f'global_blocks = {tuple(whole)}: there are blocks 0 to {depth - 1} (or -1 to -{depth}), each may be '
                'named once.'
            )
        return tuple(0 if j in found else self.size for j in range(depth))


GLOBAL = Windows()  # no windows


def four_global_blocks(depth: int) -> tuple[int, ...]:
    """The last block of each of four equal runs of blocks; all blocks when there are fewer than five."""
    return tuple(sorted({(k + 1) * depth // 4 - 1 for k in range(4)} - {-1}))
