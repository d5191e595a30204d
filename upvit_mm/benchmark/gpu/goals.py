"""The goals for one H100, as data, and which of them a report meets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Row = Mapping[str, Any]
GPU = 'H100'  # the goals are for it


@dataclass(frozen=True)
class Place:
    """Which row of a report: its keys of these names."""

    work: str
    network: str
    variant: str
    batch: int
    precision: str = 'bf16'


@dataclass(frozen=True)
class Goal:
    """A limit of a figure, or of the ratio of two figures.

    Attributes:
        text: what is compared.
        limit: the figure must not be above it, or with ``at_least`` not below it.
        row: the row that has the figure.
        over: the row whose figure it is divided by; None = not divided.
        figure: ``'seconds'``, ``'peak_bytes'`` or ``'images_per_second'``.
        at_least: whether more is better.
    """

    text: str
    limit: float
    row: Place
    over: Place | None = None
    figure: str = 'seconds'
    at_least: bool = False

    @property
    def limit_text(self) -> str:
        """For example ``at most 0.65x``."""
        return f'at {"least" if self.at_least else "most"} {self.limit:g}{"x" if self.over else ""}'


def _against_timm(network: str) -> list[Goal]:
    def goal(work: str, batch: int, suffix: str, limit: float) -> Goal:
        ours, timm = (Place(work, network, name + suffix, batch) for name in ('ours', 'timm'))
        return Goal(f'{network} {work}, {batch} images: ours over timm{suffix}', limit, ours, timm)

    return [goal('forward', 8, '', 0.65), goal('forward', 8, ' compiled', 1.0), goal('training', 4, '', 0.75)]


_GLOBAL, _WINDOWS = (Place('training', 'deit-small', variant, 4) for variant in ('ours', 'ours windows'))


def _half(network: str) -> Goal:
    dense, half = (Place('forward', network, variant, 8) for variant in ('dense', 'half the MACs'))
    return Goal(f'{network} forward, 8 images: dense over half the MACs', 1.6, dense, half, at_least=True)


GOALS = (
    *_against_timm('pvtv2-b0'),
    *_against_timm('pvtv2-b2'),
    Goal('deit-small training, 4 images: windows over global attention, time', 0.6, _WINDOWS, _GLOBAL),
    Goal('deit-small training, 4 images: windows over global attention, memory', 1.0, _WINDOWS, _GLOBAL, 'peak_bytes'),
    _half('pvtv2-b2'),
    _half('deit-small'),
    Goal(
        'RetinaNet with pvtv2-b0, training, images/s',
        60,
        Place('detector training', 'RetinaNet pvtv2-b0', 'ours', 16, 'fp16'),
        figure='images_per_second',
        at_least=True,
    ),
)


def judged(rows: Iterable[Row], goals: Iterable[Goal] = GOALS) -> list[dict[str, Any]]:
    """For each goal its ``text``, ``limit``, what was ``measured`` and whether it is ``met``; None = not measured."""
    found = {_place(row): row for row in rows if row.get('variant')}
    return [_judge(goal, found) for goal in goals]


def _judge(goal: Goal, rows: Mapping[Place, Row]) -> dict[str, Any]:
    figures = [_figure(rows.get(place), goal.figure) for place in (goal.row, goal.over) if place]
    measured = met = None
    if all(figures):
        measured = figures[0] / figures[1] if goal.over else figures[0]
        met = measured >= goal.limit if goal.at_least else measured <= goal.limit
    return {'text': goal.text, 'limit': goal.limit_text, 'measured': measured, 'met': met}


def _figure(row: Row | None, name: str) -> float | None:
    value = (row or {}).get(name)
    return value['median'] if isinstance(value, Mapping) else value


def _place(row: Row) -> Place:
    return Place(**{name: row[name] for name in asdict(_GLOBAL)})
