"""How reports write numbers: the only place for digits, signs, spreads and intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import EngFormatter

from upvit_mm.table import NOTHING

COUNT = EngFormatter(places=2)  # 4682096 -> 4.68 M
UNITS = {'G': 1e9, 'M': 1e6}
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Figure:
    """A measured number, with its spread if there are several seeds: ``40.0 ± 1.0``.

    Attributes:
        mean: in the unit that is shown; None = unknown.
        std: sample standard deviation in the same unit; None = no spread.
        digits: after the point.
        unknown: text in Markdown for an unknown number.
    """

    mean: float | None
    std: float | None = None
    digits: int = 1
    unknown: str = '-'

    @classmethod
    def of(
        cls, mean: float | None, std: float | None = None, digits: int = 1, scale: float = 1, unknown: str = '-'
    ) -> Figure:
        """From numbers in another unit; NaN means unknown too.

        Args:
            mean, std, digits, unknown: see ``Figure``.
            scale: factor from their unit to the unit that is shown.
        """
        mean, std = (None if value is None or math.isnan(value) else scale * value for value in (mean, std))
        return cls(mean, std, digits, unknown)

    def markdown(self) -> str:
        if self.mean is None:
            return self.unknown
        return f'{self.mean:.{self.digits}f}' + ('' if self.std is None else f' ± {self.std:.{self.digits}f}')

    def html(self) -> Markup:
        if self.mean is None:
            return NOTHING
        spread = '' if self.std is None else Markup('<small> ± {}</small>').format(f'{self.std:.{self.digits}f}')
        return Markup('{}{}').format(_with_minus(f'{self.mean:.{self.digits}f}'), spread)


@dataclass(frozen=True)
class Difference:
    """The difference of two rows: ``+5.4 [+1.4, +9.4]``, bold if it is established; ``+5.4 (one seed)``.

    Attributes:
        mean: in the unit that is shown; None = unknown.
        interval: the ends of its 95 % interval; None = one seed.
        established: whether the whole interval is above or below 0.
        digits: after the point.
    """

    mean: float | None
    interval: tuple[float, float] | None
    established: bool | None
    digits: int = 1

    @classmethod
    def of(cls, found: Mapping[str, Any], digits: int = 1, scale: float = 1) -> Difference:
        """From a result of ``paired_difference``.

        Args:
            found: a mapping with ``mean``, ``interval`` and ``established``.
            digits: after the point.
            scale: factor from its unit to the unit that is shown.
        """
        mean, interval = found['mean'], found['interval']
        return cls(
            None if mean is None else scale * mean,
            None if interval is None else (scale * interval[0], scale * interval[1]),
            found['established'],
            digits,
        )

    def markdown(self) -> str:
        if self.mean is None:
            return '-'
        if self.interval is None:
            return f'{self._signed(self.mean)} (one seed)'
        text = f'{self._signed(self.mean)} [{", ".join(map(self._signed, self.interval))}]'
        return f'**{text}**' if self.established else text

    def html(self) -> Markup:
        if self.mean is None:
            return NOTHING
        mean = Markup(_with_minus(self._signed(self.mean)))
        if self.interval is None:
            return mean + Markup('<small> one seed</small>')
        if self.established:
            mean = Markup('<strong>{}</strong>').format(mean)
        low, high = (_with_minus(self._signed(end)) for end in self.interval)
        return mean + Markup('<small> [{}, {}]</small>').format(low, high)

    def _signed(self, value: float) -> str:
        return f'{value:+.{self.digits}f}'


@dataclass(frozen=True)
class Count:
    """Multiply-accumulates or parameters.

    Attributes:
        value: the number; None = unknown.
        unit: unit in Markdown, from ``UNITS``; HTML chooses one that fits.
        digits: after the point, in Markdown.
        share: share in % of the numbers of the network that it is compared with.
    """

    value: float | None
    unit: str = 'M'
    digits: int = 3
    share: float | None = None

    def markdown(self) -> str:
        if self.value is None:
            return '-'
        return f'{self.value / UNITS[self.unit]:.{self.digits}f} {self.unit}'

    def html(self) -> Markup:
        if self.value is None:
            return Markup('\N{EN DASH}')
        share = '' if self.share is None else Markup('<small> {} %</small>').format(f'{self.share:.1f}')
        return Markup('{}{}').format(COUNT(self.value), share)


@dataclass(frozen=True)
class Latency:
    """Median and quartiles, in seconds; milliseconds are shown."""

    median: float
    low: float
    high: float

    def markdown(self) -> str:
        median, low, high = self._milliseconds()
        return f'{median} ({low}-{high})'

    def html(self) -> Markup:
        return Markup('{} <small>{}\N{EN DASH}{}</small>').format(*self._milliseconds())

    def _milliseconds(self) -> list[str]:
        return [f'{1000 * seconds:.1f}' for seconds in (self.median, self.low, self.high)]


@dataclass(frozen=True)
class Memory:
    """Bytes; shown in MiB, without decimals in Markdown."""

    num_bytes: int

    def markdown(self) -> str:
        return f'{self.num_bytes / MEBIBYTE:.0f}'

    def html(self) -> Markup:
        return Markup(f'{self.num_bytes / MEBIBYTE:.1f}')


@dataclass(frozen=True)
class Code:
    """A text for machines: the name of a file, a digest."""

    text: str

    def markdown(self) -> str:
        return f'`{self.text}`'

    def html(self) -> Markup:
        return Markup('<code>{}</code>').format(self.text)


def _with_minus(text: str) -> str:
    """A minus sign with the width of a plus sign."""
    return text.replace('-', '\N{MINUS SIGN}')
