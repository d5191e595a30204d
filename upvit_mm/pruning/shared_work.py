"""Scoring as a long job: batch by batch, on any number of processes, stopped and resumed at any time.

The batches of the proxy set do not depend on the number of processes; process r of W takes every W-th batch. The first
process collects the sums and adds them in the order of the batches. So the result does not depend on which process did
what, or on interruptions. Files in the work dir are only for resuming: each process keeps its finished work there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from upvit_mm.files import check_records, save_atomically
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.importance import Scores, Sums

logger = logging.getLogger('upvit_mm')
SAVE_EVERY = 10.0  # seconds between two saves of a batch that is being scored


def score_in_parts(
    batches: Sequence[Batch],
    sums_of: Callable[[Batch, set[str]], Sums],
    names: Sequence[str],
    folder: Path,
    crew: Crew,
    resumed: Callable[[str, int], None] | None = None,
) -> Scores | None:
    """Means over all images, from partial sums that are kept on disk.

    Args:
        batches: the proxy set; element k is made when it is asked for.
        sums_of: sums of a batch for the dims that are asked for; the sums of a dim must not depend on the other dims.
        names: dims to score.
        folder: for partial sums of exactly these inputs; sums found in it are used. Processes may share it or not.
        crew: the processes that share the job.
        resumed: called with dim and images for sums that were found.

    Returns:
        Scores by dim name for process 0, None for others.

    Raises:
        ValueError: no images; whatever ``sums_of`` raises.
    """
    if len(batches) == 0:
        raise ValueError('the proxy set has no images; nothing can be scored.')
    folder.mkdir(parents=True, exist_ok=True)
    mine = {
        k: _score_batch(k, batches, sums_of, names, folder, resumed) for k in range(crew.rank, len(batches), crew.size)
    }
    everyones = crew.collect(mine)
    if everyones is None:
        return None
    parts = {k: part for theirs in everyones for k, part in theirs.items()}
    totals, count = {}, 0
    for k in range(len(batches)):
        for name in names:
            sums = parts[k]['sums'][name]
            totals[name] = totals[name] + sums if name in totals else sums
        count += parts[k]['images']
    return {name: total / count for name, total in totals.items()}


def _score_batch(k: int, batches, sums_of, names: Sequence[str], folder: Path, resumed) -> dict:
    """``sums`` by dim and the number of ``images`` of a batch; what is not on disk yet is computed and saved there."""
    done = _read(_finished(folder, k))
    if done is None:
        done = _read(_started(folder, k)) or {'sums': {}, 'images': 0}
    if resumed:
        for name in done['sums']:
            resumed(name, done['images'])
    wanted = [name for name in names if name not in done['sums']]
    if not wanted:
        return done
    batch = batches[k]
    done['images'], saved = len(batch.images), time.monotonic()
    for name, values in sums_of(batch, set(wanted)):
        done['sums'][name] = values
        if time.monotonic() - saved > SAVE_EVERY:
            _write(_started(folder, k), done)
            saved = time.monotonic()
    _write(_finished(folder, k), done)
    _started(folder, k).unlink(missing_ok=True)
    return done


def _finished(folder: Path, k: int) -> Path:
    return folder / f'batch_{k:06d}.pt'


def _started(folder: Path, k: int) -> Path:
    return folder / f'batch_{k:06d}_started.pt'


def _write(path: Path, part: dict[str, int | dict[str, Tensor]]) -> None:
    save_atomically(path, part)


def _read(path: Path) -> dict | None:
    """Partial sums, or None when the file is missing or damaged; then its batch is scored again."""
    if not path.is_file():
        return None
    try:
        check_records(path)
        part = torch.load(path, map_location='cpu', weights_only=True)
        return {'sums': dict(part['sums']), 'images': int(part['images'])}
    except Exception as error:  # torch can raise any error for a damaged file
        logger.warning('%s is damaged (%s); its batch is scored again', path, type(error).__name__)
        return None
