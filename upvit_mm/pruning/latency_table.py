"""What a network costs in time: from the times of its parts at a few widths to costs that a budget can spend.

A backbone is cut into parts: in each stage its ends (patch embedding, norm, outgoing map), and for its blocks the half
with the attention and the half with the feed-forward network. Blocks of a stage with the same heads and windows share
the times of a part. Something else measures the parts (``workflow/part_times.py``); here are only numbers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import numpy as np

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import GLOBAL, Windows
from upvit_mm.pruning.table import block_name, stage_name

ENDS, ATTN, MLP = 'ends', 'attn', 'mlp'
EMBED_SHARES = (1 / 8, 1 / 2, 3 / 4, 1)  # of the dense width
HIDDEN_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
UNIT, MOST_PLACES = 8, 8  # measured widths are multiples of 8; at most 8 widths of a head
Point = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A part of a network and the widths at which it is timed.

    Attributes:
        kind: ``ENDS``, ``ATTN`` or ``MLP``.
        stage: its stage.
        rows: embedding widths, ascending; of ``ENDS`` those of the stage before (or the channels of the image).
        columns: of ``ENDS`` embedding widths, of ``MLP`` hidden widths, of ``ATTN`` channels of a head (or heads, if
            these are removed whole), ascending.
        heads: heads of the dense attention.
        units: channels of q/k and of v for each step of a column of ``ATTN``.
        by_heads: whether these are removed whole.
        window: side of the windows of ``ATTN``; 0 = global.
    """

    kind: str
    stage: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    heads: int = 0
    units: tuple[int, int] = (0, 0)
    by_heads: bool = False
    window: int = 0

    @property
    def name(self) -> str:
        """The same for blocks that share their times."""
        attention = f'.{self.heads}x{self.units[0]}x{self.units[1]}.{self.window}' if self.kind == ATTN else ''
        return f'{stage_name(self.stage)}.{self.kind}{attention}'

    @property
    def points(self) -> list[Point]:
        """Widths to time: ``(row, column)``; of attention ``(embed, q/k, v, heads)``.

        The grid of attention has equal heads of q/k and v. Two more points tell what one of them costs alone.
        """
        if self.kind != ATTN:
            return list(product(self.rows, self.columns))
        pairs = [(place, place) for place in self.columns]
        ends = self.columns[0], self.columns[-1]
        alone = [(self.rows[-1], *pair) for pair in (ends, ends[::-1])] if self._splits else []
        points = [(row, *pair) for row, pair in product(self.rows, pairs)] + alone
        heads = {place: place if self.by_heads else self.heads for place in self.columns}
        return [(row, qk * self.units[0], v * self.units[1], heads[qk]) for row, qk, v in points]

    @property
    def _splits(self) -> bool:
        """Whether q/k and v may have different widths."""
        return not self.by_heads and len(self.columns) > 1

    def seconds_at(self, seconds: Sequence[float]) -> Callable[..., float]:
        """Seconds at any widths (``(row, column)``; of attention ``(embed, q/k, v)``) from those of ``points``."""
        shape = len(self.rows), len(self.columns)
        surface = Surface.of(self.rows, self.columns, np.reshape(seconds[: shape[0] * shape[1]], shape))
        if self.kind != ATTN:
            return surface
        shares = (1.0, 1.0)
        if self._splits:
            low, high = surface.values[-1][0], surface.values[-1][-1]
            v_alone, qk_alone = ((s - low) / (high - low) if high > low else 1.0 for s in seconds[-2:])
            shares = tuple(min(max(share, 0.0), 1.0) for share in (qk_alone, v_alone))
        return HeadSurface(surface, self.units, shares)


@dataclass(frozen=True)
class Surface:
    """Seconds over two widths. They never fall when a width grows.

    Attributes:
        rows, columns: measured widths, ascending. Between them times are linear; below the first they are constant.
        values: seconds, ``[row][column]``.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, rows: Sequence[int], columns: Sequence[int], values: np.ndarray) -> Surface:
        """The mean of the smallest rising surface above the measured values and the largest one below them."""
        above, below = values, values
        for axis in (0, 1):
            above = np.maximum.accumulate(above, axis)
            below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
        return cls(tuple(rows), tuple(columns), tuple(map(tuple, ((above + below) / 2).tolist())))

    def __call__(self, row: float, column: float) -> float:
        """Seconds at these widths."""
        (r0, r1, r), (c0, c1, c) = _between(self.rows, row), _between(self.columns, column)
        first = (1 - c) * self.values[r0][c0] + c * self.values[r0][c1]
        return (1 - r) * first + r * ((1 - c) * self.values[r1][c0] + c * self.values[r1][c1])


@dataclass(frozen=True)
class HeadSurface:
    """Seconds of attention over its embedding and the widths of q/k and v.

    Kernels like certain widths of heads, so times rise in steps: between two measured widths the time is that of the
    wider one. The fused kernel pads the narrower of q/k and v; the time is between those of two equal widths.

    Attributes:
        surface: over the embedding and steps of a head (or heads) that q/k and v share.
        units: channels of q/k and of v for each step.
        shares: of the extra time of the wider width, where q/k is wider and where v is.
    """

    surface: Surface
    units: tuple[int, int]
    shares: tuple[float, float]

    def __call__(self, embed: int, qk: int, v: int) -> float:
        """Seconds at these widths."""
        at_qk, at_v = (self._place(width / unit) for width, unit in zip((qk, v), self.units))
        share = self.shares[0] if at_qk > at_v else self.shares[1]
        narrow, wide = (self.surface(embed, place) for place in sorted((at_qk, at_v)))
        return (1 - share) * narrow + share * wide

    def _place(self, place: float) -> int:
        columns = self.surface.columns
        return columns[min(bisect.bisect_left(columns, place), len(columns) - 1)]


@dataclass(frozen=True)
class TimedTerm:
    """Time of a part in a network, as ``Term`` has its multiply-accumulates.

    Attributes:
        module: its name in the backbone.
        dims: names of the dims that decide it.
        seconds: from their widths.
    """

    module: str
    dims: tuple[str, ...]
    seconds: Callable[..., float]

    def cost(self, widths: Mapping[str, int]) -> int:
        """Nanoseconds at these widths, by dim name."""
        return round(1e9 * self.seconds(*(widths[name] for name in self.dims)))


@dataclass(frozen=True)
class LatencyTable:
    """The measured times of a network's parts.

    Attributes:
        parts: see ``parts_of``.
        seconds: for each part those of its points.
        windows, by_heads: as in ``parts_of``.
        origin: where and how they were measured, plain data.
        file: where they are kept.
    """

    parts: tuple[Part, ...]
    seconds: tuple[tuple[float, ...], ...]
    windows: Windows
    by_heads: bool
    origin: Mapping[str, object]
    file: str = ''

    def terms(self, arch: ArchSpec) -> list[TimedTerm]:
        """The costs of the dense network, in nanoseconds."""
        times = {part.name: cache(part.seconds_at(seconds)) for part, seconds in zip(self.parts, self.seconds)}
        terms = []
        for i, block, part in _places(arch, self.windows, self.by_heads):
            embed, seconds = f'{stage_name(i)}.embed', times[part.name]
            if part.kind == ATTN:
                dims = (embed, f'{block}.qk', f'{block}.v')
            elif part.kind == MLP:
                dims = (embed, f'{block}.mlp_hidden')
            elif i:
                dims = (f'{stage_name(i - 1)}.embed', embed)
            else:
                dims, seconds = (embed,), partial(seconds, arch.in_channels)
            terms.append(TimedTerm(f'{block or stage_name(i)}.{part.kind}', dims, seconds))
        return terms


def parts_of(arch: ArchSpec, windows: Windows = GLOBAL, by_heads: bool = False) -> tuple[Part, ...]:
    """The parts of a dense network that are timed, each once.

    Args:
        arch: the dense network.
        windows: windows of its attention.
        by_heads: whether whole heads are removed; otherwise heads are narrowed.
    """
    parts: dict[str, Part] = {}
    for *_, part in _places(arch, windows, by_heads):
        known = parts.get(part.name, part)
        widest = part if part.columns[-1] > known.columns[-1] else known
        parts[part.name] = replace(known, columns=widest.columns)
    return tuple(parts.values())


def _places(arch: ArchSpec, windows: Windows, by_heads: bool) -> Iterator[tuple[int, str, Part]]:
    """Stage, block (empty for the ends of a stage) and part, with the grid that its own widths ask for."""
    for i, depth in enumerate(arch.depths):
        embed = _grid(arch.embed_dims[i], EMBED_SHARES)
        before = _grid(arch.embed_dims[i - 1], EMBED_SHARES) if i else (arch.in_channels,)
        yield i, '', Part(ENDS, i, before, embed)
        for j, side in enumerate(windows.sizes(depth)):
            heads, qk, v = arch.num_heads[i][j], arch.qk_dims[i][j], arch.v_dims[i][j]
            widest = -(-max(qk, v) // heads // 2) * 2  # even, for pairs of rotary channels
            places = _places_of(heads, 1) if by_heads else _places_of(widest, UNIT)
            units = (qk // heads, v // heads) if by_heads else (heads, heads)
            yield i, block_name(i, j), Part(ATTN, i, embed, places, heads, units, by_heads, side)
            yield i, block_name(i, j), Part(MLP, i, embed, _grid(arch.mlp_hidden_dims[i][j], HIDDEN_SHARES))


def _grid(width: int, shares: Sequence[float]) -> tuple[int, ...]:
    """About these shares of a width; the last is the width itself."""
    return tuple(sorted({min(UNIT * math.ceil(share * width / UNIT), width) for share in shares}))


def _places_of(top: int, unit: int) -> tuple[int, ...]:
    """Multiples of a unit up to ``top``, which is the last: at most ``MOST_PLACES``."""
    step = unit * math.ceil(top / unit / MOST_PLACES)
    return (*range(step, top, step), top)


def _between(grid: Sequence[int], width: float) -> tuple[int, int, float]:
    """The places in the grid below and above a width, and how far it is from the one to the other."""
    high = min(bisect.bisect_left(grid, width), len(grid) - 1)
    if high == 0 or width >= grid[high]:
        return high, high, 0.0
    return high - 1, high, (width - grid[high - 1]) / (grid[high] - grid[high - 1])
