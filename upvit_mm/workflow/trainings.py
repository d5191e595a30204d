"""Trainings in folders of their own: reused when finished, resumed when cut off, one or several at a time."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import Tensor

from upvit_mm.cli import is_mistake
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.runner import build_runner
from upvit_mm.workflow.ledger import Ledger, fingerprint

METRIC = 'accuracy/top1'
Say = Callable[[str], object]


@dataclass(frozen=True)
class Training:
    """A training that is to be done.

    Attributes:
        name: for people.
        folder: of this training alone: gets ``config.py``, ``console.log``, mmengine's logs and checkpoints, and
            ``record.json``, the accuracy by epoch.
        cfg: whole config.
        files: whose content decides the result beside the config: initial weights, teacher, plan.
    """

    name: str
    folder: Path
    cfg: Config
    files: tuple[Path, ...] = ()

    @cached_property
    def inputs(self) -> str:
        return fingerprint('training', self.cfg.to_dict(), [sha256_of(path) for path in self.files])

    @property
    def epochs(self) -> int:
        return self.cfg.train_cfg.max_epochs

    @property
    def checkpoint(self) -> Path:
        """The last weights."""
        return self.folder / f'epoch_{self.epochs}.pth'

    def is_done(self) -> bool:
        """Whether it was finished with the same inputs, and its files are as it left them."""
        return Ledger(self.folder).is_current('training', self.inputs)

    def record(self) -> dict[str, Any]:
        """``top1``: accuracy in % after each epoch (None where unknown); ``seconds_per_step``: median."""
        return _read_record(self.folder, self.epochs)

    def prepare(self) -> None:
        """Write the config; a folder of other inputs is emptied first.

        Raises:
            ValueError: the folder holds something else than a training of ours.
        """
        marker = self.folder / 'inputs.sha256'
        if self.folder.exists() and any(self.folder.iterdir()) and not marker.is_file():
            raise ValueError(f'{str(self.folder)!r} holds something else than a training; name another work dir.')
        if marker.is_file() and marker.read_text(encoding='utf-8') != self.inputs:
            shutil.rmtree(self.folder)
        write_text_atomically(marker, self.inputs)
        self.cfg.dump(self.folder / 'config.py')

    def finish(self) -> None:
        """Note that it is done."""
        Ledger(self.folder).record('training', self.inputs, 'record.json', self.checkpoint.name)


def train_all(trainings: Sequence[Training], jobs: int = 1, say: Say = print) -> None:
    """Do what is not done yet.

    Args:
        trainings: all that are wanted.
        jobs: how many at a time; above 1 in processes of one thread each.
        say: told how it goes, a line at a time.

    Raises:
        ValueError: ``jobs`` below 1, a folder that holds something else, or a training that stopped; the message has
            its name and reason.
    """
    if jobs < 1:
        raise ValueError(f'jobs = {jobs}: must be at least 1.')
    todo = [training for training in trainings if not training.is_done()]
    say(f'{len(trainings)} trainings, {len(trainings) - len(todo)} of them finished before with the same inputs')
    for training in todo:
        training.prepare()
    started = time.monotonic()
    for count, training in enumerate(_finished(todo, jobs), 1):
        training.finish()
        top1 = training.record()['top1'][-1]
        left = (time.monotonic() - started) / count * (len(todo) - count) / 60
        say(f'{count}/{len(todo)} {training.name}: top-1 {top1:.2f} %, about {left:.1f} min left')


def evaluate(cfg: Config, state: dict[str, Tensor], folder: Path) -> float:
    """Top-1 in % of a config's classifier with given weights on the whole validation set."""
    cfg = Config(cfg.to_dict())
    cfg.update(work_dir=str(folder), launcher='none', load_from=None, resume=False, experiment_name=_name(folder))
    with _console(folder):
        runner = build_runner(cfg, parts=('val',))
        runner.model.load_state_dict(state)
        metrics = runner.val()
    if METRIC not in metrics:
        raise ValueError(f"val_evaluator gives {', '.join(metrics)}: it must give {METRIC}; use type='Accuracy'.")
    return float(metrics[METRIC])


def run_training(folder: Path) -> str | None:
    """Do the training of a prepared folder, from its latest checkpoint on.

    Returns:
        None, or what the user did wrong; a fault in the code raises.
    """
    path = folder / 'config.py'
    cfg = VerbatimConfig(Config.fromfile(path).to_dict(), cfg_text=path.read_text(encoding='utf-8'))
    cfg.update(work_dir=str(folder), experiment_name=_name(folder))
    try:
        with _console(folder):
            runner = build_runner(cfg, parts=('train', 'val'))
            runner.register_hook(RecordHook())
            runner.train()
    except (ValueError, ImportError, OSError) as error:
        if is_mistake(error):
            return str(error)
        raise
    del runner
    gc.collect()  # a runner holds itself in circles, and its loaders' processes with it
    return None


class VerbatimConfig(Config):
    """Writes itself as its file has it: mmengine formats the config anew for every checkpoint, which for a list of
    images takes as long as some epochs."""

    @property
    def pretty_text(self) -> str:
        return self.text


class RecordHook(Hook):
    """Keeps ``record.json`` of a run: accuracy after each epoch and the time of a step without loading."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        self.seconds: list[float] = []
        known = _read_record(Path(runner.work_dir), runner.epoch)
        self.top1, self.earlier = known['top1'], known['seconds_per_step']
        if self.top1 and self.top1[-1] is None:  # cut off between saving and judging
            runner.val_loop.run()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self.started = time.perf_counter()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.started)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.top1 = [*self.top1[: runner.epoch - 1], float(metrics[METRIC])]
        seconds = statistics.median(self.seconds) if self.seconds else self.earlier
        text = json.dumps({'top1': self.top1, 'seconds_per_step': seconds})
        write_text_atomically(Path(runner.work_dir, 'record.json'), text + '\n')


def _read_record(folder: Path, epochs: int) -> dict[str, Any]:
    path, record = folder / 'record.json', {}
    if path.is_file():
        record = json.loads(path.read_text(encoding='utf-8'))
    top1 = record.get('top1', [])[:epochs]
    return {'top1': top1 + [None] * (epochs - len(top1)), 'seconds_per_step': record.get('seconds_per_step')}


def _finished(trainings: Sequence[Training], jobs: int) -> Iterator[Training]:
    """Each training when it is done."""
    if jobs == 1:
        for training in trainings:
            _raise_mistake(training, run_training(training.folder))
            yield training
        return
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(run_training, training.folder): training for training in trainings}
        try:
            for future in as_completed(futures):
                _raise_mistake(futures[future], future.result())
                yield futures[future]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _raise_mistake(training: Training, mistake: str | None) -> None:
    if mistake is not None:
        raise ValueError(f'{training.name}: {mistake}')


def _start_worker() -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # mmengine's own choice for loaders, without its warning

    def follow_parent() -> None:  # a killed parent cannot end its workers, which would go on beside the next run
        multiprocessing.parent_process().join()
        for loader in multiprocessing.active_children():
            loader.kill()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@contextlib.contextmanager
def _console(folder: Path) -> Iterator[None]:
    """What a run prints goes to a file of its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'console.log').open('a', encoding='utf-8') as file:
        try:
            with contextlib.redirect_stdout(file):
                yield
        finally:  # its logger stays mmengine's current one
            for handler in MMLogger.get_current_instance().handlers:
                if getattr(handler, 'stream', None) is file:
                    handler.setStream(sys.stdout)


def _name(folder: Path) -> str:
    """mmengine keeps loggers by the name of the experiment: one for each folder."""
    return f'{folder.name}_{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:8]}'
