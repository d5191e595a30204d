"""A budget: what a pruned network may cost. How it is spent: ``spending.py``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import GLOBAL, Size, Windows, parse_size
from upvit_mm.pruning.costs import Term, mac_terms, param_terms

UNITS = {'': 1, 'K': 1e3, 'M': 1e6, 'G': 1e9}
FORM = re.compile(
    r'(?P<metric>macs|params)=(?P<number>\d+(\.\d+)?)(?P<unit>%|[KMG]?)(@(?P<size>[\dx]+))?',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Budget:
    """What a pruned network may cost, backbone and head.

    Attributes:
        metric: ``'macs'`` of one image, or ``'params'``.
        amount: the limit: a number, or a share of the dense network's when ``relative``.
        relative: whether ``amount`` is a share.
        size: ``(height, width)`` of the image in pixels (macs); None = the network's own.
    """

    metric: str
    amount: float
    relative: bool = False
    size: Size | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``macs=50%@800x1333``, ``macs=50%@256`` (a square), ``macs=1.2G``, ``params=3.7M`` or ``params=40%``.

        Raises:
            ValueError: another form, nothing left, a share above 100 %, or a number so small that a share is meant.
        """
        match = FORM.fullmatch(text)
        if match is None or (match['metric'].lower() == 'params' and match['size']):
            raise ValueError(
                f'budget = {text!r}: must look like macs=50%@800x1333, macs=1.2G@224x224, params=3.7M or params=40%.'
            )
        relative = match['unit'] == '%'
        amount = float(match['number']) * (0.01 if relative else UNITS[match['unit'].upper()])
        if not amount or (relative and amount > 1):
            raise ValueError(f'budget = {text!r}: must be above 0, and a share at most 100 %.')
        if not match['unit'] and amount <= 100:
            number = match['number']
            share = text.replace(f'={number}', f'={number}%')
            raise ValueError(f'budget = {text!r}: no network is that small; {number} % is written {share}.')
        size = parse_size(match['size']) if match['size'] else None
        return cls(match['metric'].lower(), amount, relative, size)

    def terms(self, arch: ArchSpec, num_classes: int, windows: Windows = GLOBAL) -> list[Term]:
        """The terms that are counted; see ``mac_terms`` and ``param_terms``."""
        if self.metric == 'params':
            return param_terms(arch, num_classes)
        return mac_terms(arch, self.size_for(arch), num_classes, windows)

    def size_for(self, arch: ArchSpec) -> Size:
        """``(height, width)`` of the image for which multiply-accumulates are counted."""
        return self.size or (arch.img_size,) * 2

    def __str__(self) -> str:
        if self.relative:
            amount = f'{100 * self.amount:.6g}%'
        else:
            unit = max((u for u in UNITS if UNITS[u] <= self.amount), key=UNITS.get, default='')
            amount = f'{self.amount / UNITS[unit]:.6g}{unit}'
        at = f'@{self.size[0]}x{self.size[1]}' if self.size else ''
        return f'{self.metric}={amount}{at}'
