"""A budget in time: met by measuring the pruned network beside the dense one, and said if it is not met."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Windows
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import total, widths_of
from upvit_mm.stopwatch import Timing
from upvit_mm.workflow.part_times import Bench
from upvit_mm.workflow.prune_settings import PruneSettings

logger = logging.getLogger('upvit_mm')
WITHIN = 0.05  # of the asked share
CORRECTIONS = 2
Latency = dict[str, Any]


def bench_of(goal: Budget, settings: PruneSettings, windows: Windows) -> Bench:
    """Device and settings of the measurements for a budget.

    Raises:
        ValueError: see ``Bench``.
    """
    s = settings
    return Bench(goal.size, s.latency_device or s.device, s.latency_precision, s.latency_batch, windows)


def meet(
    goal: Budget,
    source: ArchSpec,
    widths_for: Callable[[Budget], ArchSpec],
    compare: Callable[[Mapping[str, ArchSpec]], Mapping[str, Timing]],
) -> tuple[ArchSpec, Latency]:
    """Widths whose measured time is within 5 % of a budget, or the nearest found.

    The table of parts predicts a time. If the measured one differs by more, the table is asked for as much less or
    more, at most twice.

    Args:
        goal: the budget, with its table.
        source: the dense network.
        widths_for: gives the widths for a budget by its table.
        compare: times networks side by side, by name.

    Returns:
        The architecture, and plain data: ``asked``, ``predicted`` and ``measured`` as shares of the dense network's
        time, ``corrections``, ``dense`` and ``pruned`` (see ``Timing``), and the origin of the table.

    Raises:
        ValueError: the table knows no widths for the budget; see ``target_for_budget``.
    """
    terms, found = goal.terms(source, 0), []
    dense = total(terms, widths_of(source))
    amount = goal.amount
    for corrections in range(1 + CORRECTIONS):
        try:
            target = widths_for(replace(goal, amount=amount))
        except ValueError:
            if not found:
                raise
            break  # a corrected budget that is out of reach
        times = compare({'dense': source, 'pruned': target})
        measured = times['pruned'].median / times['dense'].median
        figures = {'asked': goal.amount, 'predicted': total(terms, widths_of(target)) / dense, 'measured': measured}
        figures |= {'corrections': corrections, **{name: timing.to_dict() for name, timing in times.items()}}
        found.append((target, figures))
        logger.info('latency: %s', _shares(figures))
        if is_met(figures):
            break
        amount = min(amount * goal.amount / measured, 1.0)
    target, figures = min(found, key=lambda one: _miss(one[1]))
    target = replace(target, name=f'{source.name or source.family}@{goal}')
    latency = {**figures, 'goal': str(goal), 'origin': dict(goal.table.origin), 'table': goal.table.file}
    if not is_met(latency):
        logger.warning(latency_lines(latency)[-1])
    return target, latency


def _miss(figures: Mapping[str, Any]) -> float:
    return abs(figures['measured'] / figures['asked'] - 1)


def is_met(figures: Mapping[str, Any]) -> bool:
    """Whether the measured share is within 5 % of the asked one."""
    return _miss(figures) <= WITHIN


def _shares(figures: Mapping[str, Any]) -> str:
    return ', '.join(f'{name} {100 * figures[name]:.1f} %' for name in ('asked', 'predicted', 'measured'))


def latency_lines(latency: Latency | None) -> list[str]:
    """What was asked, predicted and measured, and whether the budget is met; nothing for other goals."""
    if not latency:
        return []
    origin = latency['origin']
    count = origin['threads'] or 0
    threads = f', {count} thread{"s" * (count > 1)}' if count else ''
    threads += ', processor time' if origin['clock'] == 'processor' else ''
    times = (f'{1e3 * latency[name]["median"]:.2f} ms' for name in ('pruned', 'dense'))
    where = f'{origin["size"][0]}x{origin["size"][1]}, batch {origin["batch"]}, {origin["precision"]}'
    first = (
        f'latency of the backbone at {where} on {origin["device"]}{threads}: {_shares(latency)} of the dense network '
        f'({" of ".join(times)}, medians of {latency["dense"]["runs"]} alternating runs; corrections: '
        f'{latency["corrections"]})'
    )
    if is_met(latency):
        return [first, f'the budget {latency["goal"]} is met within {WITHIN:.0%}']
    asked, measured = latency['asked'], latency['measured']
    other = Budget.parse(latency['goal'])
    other = replace(other, amount=min(round(asked * asked / measured, 3), 1.0))
    return [
        first,
        f'the budget {latency["goal"]} is NOT met within {WITHIN:.0%}: asked {100 * asked:.1f} %, measured '
        f'{100 * measured:.1f} %. Ask for {other}. Or, if the machine was busy, delete {latency["table"]} '
        'and this work dir, and prune again when it is quiet.',
    ]
