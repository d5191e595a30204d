"""Trainings in their own folders: reused when finished, resumed after an interruption, one or several at a time.

In a distributed job all processes run the same trainings together; only the first one manages the folders.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier, broadcast_object_list, is_distributed, is_main_process
from mmengine.logging import MMLogger
from torch import Tensor

from upvit_mm.cli import is_mistake
from upvit_mm.data.identity import looked_at_once, run_identity
from upvit_mm.files import empty_folder, sha256_of, write_text_atomically
from upvit_mm.runner import build_runner
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.record import TOP1, Metric, RecordHook, Say, read_record

RUN_NUMBERS = itertools.count()  # of this process


@dataclass(frozen=True)
class Training:
    """A training to do.

    Attributes:
        name: its name in messages.
        folder: folder of only this training: gets ``config.py``, ``console.log``, mmengine's logs and checkpoints, and
            ``record.json``, the metric by epoch.
        cfg: whole config; its ``judged_by`` names the metric, see ``Metric``.
        files: files that decide the result, in addition to the config, its data, and the files that its model names.
    """

    name: str
    folder: Path
    cfg: Config
    files: tuple[Path, ...] = ()

    @cached_property
    def inputs(self) -> str:
        read = run_identity(self.cfg, ('train', 'val'))
        return fingerprint('training', self.cfg.to_dict(), [sha256_of(path) for path in self.files], read)

    @property
    def epochs(self) -> int:
        return self.cfg.train_cfg.max_epochs

    @property
    def checkpoint(self) -> Path:
        """The last weights."""
        return self.folder / f'epoch_{self.epochs}.pth'

    def is_done(self) -> bool:
        """Whether it was finished with the same inputs, and its files have not changed."""
        return Ledger(self.folder).is_current('training', self.inputs)

    def record(self) -> dict[str, Any]:
        """``top1`` in % (``bbox_mAP`` in 0 to 1) after each epoch, None if unknown; ``seconds_per_step``: median;
        ``pictures``: number of training pictures."""
        return read_record(self.folder, self.epochs, Metric.of(self.cfg))

    def prepare(self) -> Path | None:
        """Write the config in a folder for these inputs.

        If the folder belongs to other inputs and has checkpoints, it is kept under another name, and comes back when
        its inputs come back. A folder without checkpoints is emptied.

        Returns:
            The new path of a training with other inputs, or None.

        Raises:
            ValueError: the folder holds something other than a training of ours.
        """
        marker = self.folder / 'inputs.sha256'
        found = self.folder.iterdir() if self.folder.exists() else ()
        if not marker.is_file() and any(path.suffix != '.part' for path in found):  # an interruption leaves a part
            raise ValueError(f'{str(self.folder)!r} holds something other than a training; give another work dir.')
        if self.folder.exists() and not marker.is_file():
            shutil.rmtree(self.folder)  # left by an interruption
        aside = None
        if marker.is_file() and (theirs := marker.read_text(encoding='utf-8')) != self.inputs:
            if any(self.folder.glob('epoch_*.pth')):
                aside = self.folder.rename(self._aside(theirs))
            else:
                empty_folder(self.folder, last=marker)  # until then this file marks the folder as ours
                self.folder.rmdir()
        if not self.folder.exists() and (earlier := self._aside(self.inputs)).is_dir():
            earlier.rename(self.folder)
        if not self.is_done():
            write_text_atomically(marker, self.inputs)
            self.cfg.dump(self.folder / 'config.py')
        return aside

    def _aside(self, inputs: str) -> Path:
        return self.folder.with_name(f'{self.folder.name}.other-{inputs[:12]}')

    def finish(self) -> None:
        """Record that it is done."""
        Ledger(self.folder).record('training', self.inputs, 'record.json', self.checkpoint.name)


def train_all(trainings: Sequence[Training], jobs: int = 1, say: Say = print) -> None:
    """Run the trainings that are not finished yet.

    Args:
        trainings: all trainings.
        jobs: trainings at a time; more than 1 run in processes of one thread each, and not in a distributed job.
        say: told how it goes, a line at a time.

    Raises:
        ValueError: impossible ``jobs``, a folder with other content, or a training that stopped; the message has its
            name and reason.
    """
    if jobs < 1 or (jobs > 1 and is_distributed()):
        raise ValueError(f'jobs = {jobs}: must be at least 1, and 1 in a distributed job.')
    main = is_main_process()
    with looked_at_once():
        asides = {training.name: training.prepare() for training in trainings} if main else {}
        done = [main and training.is_done() for training in trainings]
    broadcast_object_list(done)
    todo = [training for training, finished in zip(trainings, done) if not finished]
    say(f'{len(trainings)} trainings, {len(trainings) - len(todo)} of them finished before with the same inputs')
    for name, aside in asides.items():
        if aside:
            say(f'{name}: other settings or files than before; the earlier training is kept in {aside}')
    started = time.monotonic()
    for count, training in enumerate(_finished(todo, jobs, say), 1):
        if main:
            metric = Metric.of(training.cfg)
            training.finish()
            value = metric.text.format(training.record()[metric.name][-1])
            left = (time.monotonic() - started) / count * (len(todo) - count) / 60
            say(f'{count}/{len(todo)} {training.name}: {value}, about {left:.1f} min left')
    barrier()


def evaluate(cfg: Config, state: dict[str, Tensor], folder: Path) -> float:
    """Top-1 in % of a config's classifier with these weights on the whole validation set."""
    cfg = placed(Config(cfg.to_dict()), folder)
    cfg.update(load_from=None, resume=False)
    with console_of(folder):
        runner = build_runner(cfg, parts=('val',))
        runner.model.load_state_dict(state)
        metrics = runner.val()
    return TOP1.read(metrics)


def run_training(folder: Path, say: Say | None = None) -> str | None:
    """Run the training of a prepared folder, from its latest checkpoint.

    Args:
        folder: see ``Training.prepare``.
        say: called with the metric of every evaluated epoch.

    Returns:
        None, or the message of a user's error; an error in the code raises.
    """
    path, terminal = folder / 'config.py', sys.stdout

    def aloud(text: str) -> None:
        with contextlib.redirect_stdout(terminal):
            say(text)

    cfg = VerbatimConfig(Config.fromfile(path).to_dict(), cfg_text=path.read_text(encoding='utf-8'))
    placed(cfg, folder)
    try:
        with console_of(folder):
            runner = build_runner(cfg, parts=('train', 'val'))
            runner.register_hook(RecordHook(Metric.of(cfg), aloud if say else None))
            runner.train()
    except (ValueError, ImportError, OSError) as error:
        if is_mistake(error):
            return str(error)
        raise
    del runner
    gc.collect()  # a runner has reference cycles, which keep its loaders' processes alive
    return None


class VerbatimConfig(Config):
    """A config that returns the text of its file.

    mmengine formats the config again for every checkpoint, which for a list of images takes as long as some epochs.
    """

    @property
    def pretty_text(self) -> str:
        return self.text


def _finished(trainings: Sequence[Training], jobs: int, say: Say) -> Iterator[Training]:
    """Yield each training when it is done; ``say`` gets the epochs if trainings run one after another."""
    if jobs == 1:
        for training in trainings:
            say(f'{training.name}: {training.epochs} epochs in {training.folder}')
            _raise_mistake(training, run_training(training.folder, say))
            yield training
        return
    context = multiprocessing.get_context('spawn')
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    futures = {pool.submit(run_training, training.folder): training for training in trainings}
    try:
        for future in as_completed(futures):
            _raise_mistake(futures[future], future.result())
            yield futures[future]
    finally:  # no `with`: it would wait for trainings that have not begun
        pool.shutdown(wait=False, cancel_futures=True)


def _raise_mistake(training: Training, mistake: str | None) -> None:
    if mistake is not None:
        raise ValueError(f'{training.name}: {mistake}')


def _start_worker() -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # mmengine's own choice for loaders, without its warning

    def follow_parent() -> None:  # a killed parent cannot end its workers
        multiprocessing.parent_process().join()
        for loader in multiprocessing.active_children():
            loader.kill()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@contextlib.contextmanager
def console_of(folder: Path) -> Iterator[None]:
    """Write the output of a run to a file in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'console.log').open('a', encoding='utf-8') as file:
        try:
            with contextlib.redirect_stdout(file):
                yield
        finally:  # its logger stays mmengine's current one
            for handler in MMLogger.get_current_instance().handlers:
                if getattr(handler, 'stream', None) is file:
                    handler.setStream(sys.stdout)


def placed(cfg: Config, folder: Path) -> Config:
    """The config with the folder and the processes of its run."""
    # mmengine keeps loggers and visualizers by name until the process ends: one name for each run
    name = f'{folder.name}_{next(RUN_NUMBERS)}'
    cfg.update(work_dir=str(folder), experiment_name=name, launcher='pytorch' if is_distributed() else 'none')
    if cfg.get('visualizer'):
        cfg.visualizer.name = name
    return cfg
