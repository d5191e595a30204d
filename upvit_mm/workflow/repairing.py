"""Compensation as a job: it shows progress and the lack of each layer, and continues after an interruption."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from upvit_mm.files import check_records, save_atomically
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.compensate import compensate, steps_of
from upvit_mm.pruning.plan import PrunePlan
from upvit_mm.pruning.walk import Walk

logger = logging.getLogger('upvit_mm')
SAVE_EVERY = 10.0  # seconds


def compensate_resumably(
    dense: Walk,
    sliced: Walk,
    plan: PrunePlan,
    batches: Sequence[Batch],
    ridge: float | None,
    file: Path,
    memory: float | None = None,
) -> None:
    """``compensate`` that saves the layers that it has corrected.

    Args:
        dense, sliced, plan, batches, ridge, memory: see ``compensate``.
        file: for the state of exactly these inputs; an existing one is continued. The caller removes it.
    """
    done = _earlier(file, sliced)
    if done:
        logger.info('%d layers were compensated before the job was cut off', len(done))
    layers = len(steps_of(plan, sliced.head is not None))
    console = Console(stderr=True)
    columns = (TextColumn('compensating'), BarColumn(), MofNCompleteColumn(), TextColumn('layers {task.fields[lack]}'))
    bars = Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
    task, saved = bars.add_task('', total=layers, lack=''), time.monotonic()

    def report(name: str, left: float | None) -> None:
        nonlocal saved
        if left is not None:
            done.append(name)
            text = f'{name}: {100 * left:.1f} % of what it lacked is left'
            logger.info('compensated %s', text)
            bars.update(task, lack=text)
            if time.monotonic() - saved >= SAVE_EVERY:
                save_atomically(file, {'done': done, 'state': sliced.state_dict()})
                saved = time.monotonic()
        bars.advance(task)

    file.parent.mkdir(parents=True, exist_ok=True)
    with bars:
        compensate(dense, sliced, plan, batches, ridge, report, tuple(done), memory)


def _earlier(file: Path, sliced: Walk) -> list[str]:
    """Load the layers that an earlier run corrected into the network; returns their names. A damaged file is
    ignored."""
    if not file.is_file():
        return []
    try:
        check_records(file)
        content = torch.load(file, map_location='cpu', weights_only=True)
        sliced.load_state_dict(content['state'])
        return list(content['done'])
    except Exception as error:  # torch can raise any error for a damaged file
        logger.warning('%s is damaged (%s); the compensation starts again', file, type(error).__name__)
        return []
