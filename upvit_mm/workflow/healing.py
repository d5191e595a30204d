"""Healing: a pruned detector follows the dense one on unlabelled pictures for some minutes.

Only the backbone and the layers that read its maps are trained. The loss is the ``map_distance`` of the maps that the
neck gives to the heads. No labels and no heads are needed, so the heads and everything that they have learned stay as
they are. This is ours.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from upvit_mm.files import check_records, save_atomically
from upvit_mm.models.losses import map_distance
from upvit_mm.pruning.batch import Batch

logger = logging.getLogger('upvit_mm')
LEARNING_RATE, WATCHED = 2e-4, 8  # one batch of this many is not trained on
SAVE_EVERY = LOOK_EVERY = 20.0  # seconds


def heal(
    dense: nn.Module,
    pruned: nn.Module,
    readers: Iterable[str],
    batches: Sequence[Batch],
    minutes: float,
    seed: int,
    file: Path,
) -> dict[str, float]:
    """Train a pruned detector in place; it ends with the weights that were best on pictures it was not trained on.

    Args:
        dense: the dense detector, on the same device.
        pruned: the pruned one, already sliced and better repaired.
        readers: tensors outside the backbone that are trained too.
        batches: unlabelled pictures, preprocessed; every ``WATCHED``-th batch is only looked at.
        minutes: of training.
        seed: of the order of the batches and of their flips.
        file: for the state of exactly these inputs; an existing one is continued. The caller removes it.

    Returns:
        The loss on the watched batches ``before`` and ``after``.

    Raises:
        ValueError: fewer than two batches, or see ``map_distance``.
    """
    if len(batches) < 2:
        raise ValueError(f'heal: {len(batches)} batch of pictures; two or more are needed, one of them to look at.')
    watched = range(len(batches) - 1, -1, -WATCHED)
    trained = [k for k in range(len(batches)) if k not in watched]
    dense.eval().requires_grad_(False)
    names = set(readers)
    for name, parameter in pruned.eval().named_parameters():
        parameter.requires_grad_(name.startswith('backbone.') or name in names)
    run = _Healing(dense, pruned, batches, watched, minutes, file)
    run.train(trained, torch.Generator().manual_seed(seed))
    pruned.load_state_dict(run.best)
    logger.info('healed: %.4f of the variance of the maps was missing, %.4f is left', run.before, run.least)
    return {'before': run.before, 'after': run.least}


class _Healing:
    """The state of a training that can go on after an interruption."""

    def __init__(self, dense, pruned, batches: Sequence[Batch], watched: Sequence[int], minutes: float, file: Path):
        self.dense, self.pruned, self.batches, self.watched = dense, pruned, batches, watched
        self.seconds, self.file = 60 * minutes, file
        parameters = [p for p in pruned.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
        self.elapsed, self.steps = 0.0, 0
        self.before = self.least = self.unseen()
        self.best = copy.deepcopy(pruned.state_dict())
        self._go_on()

    def train(self, trained: Sequence[int], generator: torch.Generator) -> None:
        """Train until the time is up, and look at the watched batches from time to time."""
        bars, last = self._bars(), time.monotonic()
        looked = last
        with bars:
            task = bars.add_task('', total=self.seconds, completed=self.elapsed, lack='')
            while self.elapsed < self.seconds:
                k = trained[int(torch.randint(len(trained), (1,), generator=generator))]
                self._step(k, flip=bool(torch.randint(2, (1,), generator=generator)))
                now = time.monotonic()
                self.elapsed, last = self.elapsed + now - last, now
                if now - looked > LOOK_EVERY or self.elapsed >= self.seconds:
                    self._look()
                    save_atomically(self.file, self._state())
                    looked = last = time.monotonic()
                    bars.update(task, lack=f'{self.least:.4f} of the variance is missing')
                bars.update(task, completed=min(self.elapsed, self.seconds))

    @torch.no_grad()
    def unseen(self) -> float:
        """Mean loss on the watched batches."""
        losses = [self._loss(self.batches[k].images).item() for k in self.watched]
        return sum(losses) / len(losses)

    def _step(self, k: int, flip: bool) -> None:
        images = self.batches[k].images
        rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * min(self.elapsed / self.seconds, 1)))
        for group in self.optimizer.param_groups:
            group['lr'] = rate * min(1, (self.steps + 1) / 20)
        self.optimizer.zero_grad()
        self._loss(images.flip(-1) if flip else images).backward()
        nn.utils.clip_grad_norm_([p for p in self.pruned.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.steps += 1

    def _loss(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.dense.extract_feat(images)
        return map_distance(self.pruned.extract_feat(images), wanted)

    def _look(self) -> None:
        loss = self.unseen()
        if loss < self.least:
            self.least, self.best = loss, copy.deepcopy(self.pruned.state_dict())

    def _state(self) -> dict:
        state = {name: getattr(self, name) for name in ('elapsed', 'steps', 'before', 'least', 'best')}
        return state | {'weights': self.pruned.state_dict(), 'optimizer': self.optimizer.state_dict()}

    def _go_on(self) -> None:
        """Continue an earlier run; a damaged file is ignored."""
        if not self.file.is_file():
            return
        try:
            check_records(self.file)
            state = torch.load(self.file, map_location='cpu', weights_only=True)
            self.pruned.load_state_dict(state.pop('weights'))
            self.optimizer.load_state_dict(state.pop('optimizer'))
            self.__dict__.update(state)
            logger.info('healing goes on after %.1f of %.1f minutes', self.elapsed / 60, self.seconds / 60)
        except Exception as error:  # torch can raise any error for a damaged file
            logger.warning('%s is damaged (%s); the healing starts again', self.file, type(error).__name__)

    def _bars(self) -> Progress:
        console = Console(stderr=True)
        columns = (TextColumn('healing'), BarColumn(), TextColumn('{task.fields[lack]}'))
        return Progress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
