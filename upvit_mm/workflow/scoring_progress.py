"""Progress of the scoring: one bar per kind of dim on a terminal, or a line from time to time in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger('upvit_mm')
LINE_EVERY = 30.0  # seconds


class ScoringProgress:
    """Bars with rate and time left; ``with`` shows them.

    Args:
        totals: candidates x images to score, by kind of dim.
        candidates: what they are.
    """

    def __init__(self, totals: Mapping[str, int], candidates: str = 'channels'):
        self.totals, self.unit = totals, f'{candidates} x images/s'
        self.done = dict.fromkeys(totals, 0.0)
        self.resumed = 0.0
        console = Console(stderr=True)
        self.bars = Progress(
            TextColumn('{task.description:<10}'),
            BarColumn(),
            TextColumn('{task.percentage:>5.1f} %'),
            TextColumn(f'{{task.fields[rate]:>9}} {self.unit}'),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks = {kind: self.bars.add_task(kind, total=total, rate='') for kind, total in totals.items()}
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> ScoringProgress:
        self.bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def resume(self, kind: str, amount: float) -> None:
        """Work of an earlier run: it counts as done, but not for the rate."""
        self.resumed += amount
        self.done[kind] += amount
        self.bars.update(self.tasks[kind], completed=self.done[kind])

    def advance(self, kind: str, amount: float) -> None:
        """Add ``amount`` candidates x images."""
        self.done[kind] += amount
        now = time.monotonic()
        rate = (sum(self.done.values()) - self.resumed) / max(now - self.started, 1e-9)
        self.bars.update(self.tasks[kind], completed=self.done[kind], rate=f'{rate:.0f}')
        if self.bars.disable and now - self.last_line > LINE_EVERY:
            self.last_line = now
            share, left = (
                sum(self.done.values()) / sum(self.totals.values()),
                sum(self.totals.values()) - sum(self.done.values()),
            )
            logger.info('scored %.1f %%, %.0f %s, %.0f s left', 100 * share, rate, self.unit, left / rate)
