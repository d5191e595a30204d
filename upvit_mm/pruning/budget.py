"""A budget: what a pruned network may cost. How it is spent: ``spending.py``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import GLOBAL, Size, Windows, parse_size
from upvit_mm.pruning.costs import Cost, mac_terms, param_terms
from upvit_mm.pruning.latency_table import LatencyTable

UNITS = {'': 1, 'K': 1e3, 'M': 1e6, 'G': 1e9}
FORM = re.compile(
    r'(?P<metric>macs|params|latency)=(?P<number>\d+(\.\d+)?)(?P<unit>%|[KMG]?)(@(?P<size>[\dx]+))?',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Budget:
    """What a pruned network may cost, backbone and head; its time is that of the backbone.

    Attributes:
        metric: ``'macs'`` of one image, ``'params'``, or ``'latency'`` of a forward pass.
        amount: the limit: a number, or a share of the dense network's when ``relative``.
        relative: whether ``amount`` is a share.
        size: ``(height, width)`` of the image in pixels (macs and latency); None = the network's own.
        table: measured times of the dense network's parts (latency).
    """

    metric: str
    amount: float
    relative: bool = False
    size: Size | None = None
    table: LatencyTable | None = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``macs=50%@800x1333``, ``macs=50%@256`` (a square), ``macs=1.2G``, ``params=3.7M`` or ``params=40%``.

        A latency is a share of the dense network's: ``latency=60%@800x1344``.

        Raises:
            ValueError: another form, nothing left, a share above 100 %, or a number so small that a share is meant.
        """
        match = FORM.fullmatch(text)
        metric = match['metric'].lower() if match else ''
        if not match or (metric == 'params' and match['size']) or (metric == 'latency' and match['unit'] != '%'):
            raise ValueError(
                f'budget = {text!r}: must look like macs=50%@800x1333, macs=1.2G@224x224, params=3.7M, params=40% or '
                'latency=60%@800x1344 (a share of the dense network).'
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
        return cls(metric, amount, relative, size)

    def terms(self, arch: ArchSpec, num_classes: int, windows: Windows = GLOBAL) -> Sequence[Cost]:
        """The terms that are counted; see ``mac_terms``, ``param_terms`` and ``LatencyTable``.

        Raises:
            ValueError: a latency without its table.
        """
        if self.metric == 'latency':
            if self.table is None:
                raise ValueError(f'budget {self}: only tools/prune.py measures times; here give macs= or params=.')
            return self.table.terms(arch)
        if self.metric == 'params':
            return param_terms(arch, num_classes)
        return mac_terms(arch, self.size_for(arch), num_classes, windows)

    def size_for(self, arch: ArchSpec) -> Size:
        """``(height, width)`` of the image for which multiply-accumulates or time are counted."""
        return self.size or (arch.img_size,) * 2

    @property
    def has_size(self) -> bool:
        """Whether the cost depends on the size of the image."""
        return self.metric != 'params'

    @property
    def tolerance(self) -> float:
        """How far below the budget a network may stay, as a share of it. Times rise in steps, so they fit worse."""
        return 0.03 if self.metric == 'latency' else 0.01

    def text(self, cost: float, unit: bool = True) -> str:
        """A cost in digits, with its unit: ``'1,234 macs'``, ``'1.234 ms'``."""
        if self.metric == 'latency':
            return f'{cost / 1e6:,.3f} ms'
        return f'{int(cost):,} {self.metric}' if unit else f'{int(cost):,}'

    def __str__(self) -> str:
        if self.relative:
            amount = f'{100 * self.amount:.6g}%'
        else:
            unit = max((u for u in UNITS if UNITS[u] <= self.amount), key=UNITS.get, default='')
            amount = f'{self.amount / UNITS[unit]:.6g}{unit}'
        at = f'@{self.size[0]}x{self.size[1]}' if self.size else ''
        return f'{self.metric}={amount}{at}'
