"""What a training logged: mmengine's ``scalars.json`` of all its starts."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEACHER = 'loss_tokens'  # of upvit_mm.FollowDense; only some rows have it


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """All records of a training's work dir, those of its first start first; a line that a kill cut off is left out."""
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def losses(folder: Path) -> list[float | None]:
    """The detector's own loss, without a teacher's term: the mean of what was logged in each epoch.

    Steps that a resumed training repeated count once, with their last value.
    """
    by_step: dict[int, tuple[int, float]] = {}
    for record in records(folder):
        own = [value for name, value in record.items() if name.startswith('loss_') and name != TEACHER]
        if own and 'epoch' in record:
            by_step[record['step']] = record['epoch'], sum(own)
    by_epoch = defaultdict(list)
    for epoch, loss in by_step.values():
        by_epoch[epoch].append(loss)
    last = max(by_epoch, default=0)
    return [statistics.fmean(by_epoch[epoch]) if epoch in by_epoch else None for epoch in range(1, last + 1)]


def last_value(folder: Path, name: str) -> float | None:
    """The last value of a metric; None = it was never logged."""
    values = [record[name] for record in records(folder) if name in record]
    return values[-1] if values else None
