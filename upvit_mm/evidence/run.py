"""Run the steps of an experiment: each once, several side by side, gone on with after an interruption."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger

from upvit_mm.evidence.steps import Step
from upvit_mm.evidence.studies import SCALE_VARIABLE
from upvit_mm.files import write_text_atomically
from upvit_mm.quiet_log import leave_out_repeated
from upvit_mm.workflow.ledger import Ledger, fingerprint

POLL = 0.5  # seconds
MINUTES, LOCK = 'minutes.json', 'running.lock'
INPUTS = 'evidence-step.txt'  # in the folder of a training: what it was started with


@dataclass
class Running:
    """A step's process."""

    step: Step
    process: subprocess.Popen
    started: float


class Run:
    """The steps of an experiment with their state on disk.

    Args:
        steps: all steps; each need is one of them.
        root: the work dir; gets ``logs/``.
        scale: see ``studies.SCALES``.
        jobs: steps at a time.
        threads: threads of each step.
        say: told how it goes, a line at a time.
    """

    def __init__(self, steps: Sequence[Step], root: Path, scale: str, jobs: int, threads: int, say: Callable = print):
        self.steps = {step.name: step for step in sorted(steps, key=lambda step: step.rank)}
        self.root, self.scale, self.jobs, self.threads, self.say = root, scale, jobs, threads, say
        self.program: tuple[str, ...] = (sys.executable, '-m', 'upvit_mm')
        self._locks: Sequence[int] = ()
        self._inputs: dict[str, str] = {}
        self._contents: dict[str, dict] = {}

    def inputs_of(self, step: Step) -> str:
        """Fingerprint of a step's command and config, of the scale, and of all steps before it."""
        if step.name not in self._inputs:
            before = [self.inputs_of(self.steps[name]) for name in step.needs]
            texts = [text for _, text in step.texts] + ([step.way] if step.way else [])
            self._inputs[step.name] = fingerprint(
                'evidence', step.command, self.scale, texts, self._content_of(step.config), before
            )
        return self._inputs[step.name]

    def _content_of(self, config: str) -> dict:
        if config and config not in self._contents:
            os.environ[SCALE_VARIABLE] = self.scale
            leave_out_repeated(MMLogger.get_current_instance())
            self._contents[config] = Config.fromfile(config).to_dict()
        return self._contents.get(config, {})

    def is_done(self, step: Step) -> bool:
        """Whether it was finished with the same inputs, and its output has not changed."""
        return Ledger(step.home or self.root).is_current(step.name, self.inputs_of(step))

    def go(self, minutes: float | None = None) -> dict[str, str]:
        """Run all steps that are not done, those of low rank first.

        Args:
            minutes: no step is started later, and those that run then are stopped; None = no limit. The same command
                goes on later.

        Returns:
            For each step ``'done'``, ``'failed'``, ``'waiting'`` (for a failed one) or ``'left'`` (no time).

        Raises:
            ValueError: another process runs steps of the same study and seed.
        """
        with contextlib.ExitStack() as locks, _ending_steps_when_terminated():
            homes = dict.fromkeys(step.home or self.root for step in self.steps.values())
            self._locks = [locks.enter_context(_alone_in(home)) for home in homes]
            return self._go(minutes)

    def _go(self, minutes: float | None) -> dict[str, str]:
        started = time.monotonic()
        state = {name: 'done' if self.is_done(step) else 'left' for name, step in self.steps.items()}
        self.say(f'{len(state)} steps, {list(state.values()).count("done")} of them finished before')
        running: list[Running] = []
        try:
            while True:
                late = minutes is not None and time.monotonic() - started > 60 * minutes
                if late:
                    break
                while len(running) < self.jobs and (step := self._next(state)) is not None:
                    running.append(self._start(step))
                    state[step.name] = 'running'
                if not running:
                    break
                time.sleep(POLL)
                for run in [r for r in running if r.process.poll() is not None]:
                    running.remove(run)
                    state[run.step.name] = self._finish(run)
        finally:
            for run in running:
                _end(run.process)
                state[run.step.name] = 'left'
        return {name: self._why(name, state) for name in state}

    # ---------------------------------------------------------------------- parts

    def _next(self, state: dict[str, str]) -> Step | None:
        for name, step in self.steps.items():
            if state[name] == 'left' and all(state[need] == 'done' for need in step.needs):
                return step
        return None

    def _start(self, step: Step) -> Running:
        for path, text in step.texts:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, text)
        if not step.resumes:
            self._claim(step)
        log = self.root / 'logs' / f'{step.name.replace("/", "_")}.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*self.program, *step.command]
        self.say(f'{step.name}: upvit-mm {shlex.join(step.command)}')
        environment = {**os.environ, SCALE_VARIABLE: self.scale, 'OMP_NUM_THREADS': str(self.threads)}
        with log.open('a', encoding='utf-8') as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=self._locks,
                start_new_session=True,
            )
        return Running(step, process, time.monotonic())

    def _claim(self, step: Step) -> None:
        """A folder that was begun with other inputs is kept under another name: ``--resume`` would go on with it."""
        marker, inputs = step.folder / INPUTS, self.inputs_of(step)
        if step.folder.exists():
            theirs = marker.read_text(encoding='utf-8') if marker.is_file() else 'unknown'
            if theirs == inputs:
                return
            step.folder.rename(step.folder.with_name(f'{step.folder.name}.other-{theirs[:12]}-{time.time_ns()}'))
        step.folder.mkdir(parents=True)
        write_text_atomically(marker, inputs)

    def _finish(self, run: Running) -> str:
        step, minutes = run.step, (time.monotonic() - run.started) / 60
        _end(run.process)  # it may have been killed, without its loaders
        if run.process.returncode or not step.output.is_file():
            self.say(f'{step.name}: failed with status {run.process.returncode}; see {self.root}/logs')
            return 'failed'
        home = step.home or self.root
        Ledger(home).record(step.name, self.inputs_of(step), os.path.relpath(step.output, home))
        took = {**_minutes_in(home), step.name: round(minutes, 2)}
        write_text_atomically(home / MINUTES, json.dumps(took))
        self.say(f'{step.name}: done in {minutes:.1f} min')
        return 'done'

    def _why(self, name: str, state: dict[str, str]) -> str:
        needs = [self._why(need, state) for need in self.steps[name].needs]
        if state[name] == 'left' and any(need in ('failed', 'waiting') for need in needs):
            return 'waiting'
        return state[name]


def _end(process: subprocess.Popen) -> None:
    """End a step with all processes that it started: a loader of pictures that outlives it would hold the lock."""
    process.terminate()
    process.wait()
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        for _ in range(20):
            os.killpg(process.pid, signal.SIGKILL)
            time.sleep(POLL / 2)


@contextlib.contextmanager
def _ending_steps_when_terminated() -> Iterator[None]:
    """SIGTERM, of a scheduler or ``kill``, ends this process like Ctrl-C does: its steps are ended first."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def minutes_of(homes: Iterable[Path]) -> dict[str, float]:
    """Minutes of each finished step in some folders of a study and seed, its last start alone."""
    return {name: value for home in homes for name, value in _minutes_in(home).items()}


@contextlib.contextmanager
def _alone_in(home: Path) -> Iterator[int]:
    """Two processes would train in the same folders. Steps hold the lock too, in case they outlive a killed process."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f'another process runs this experiment in {str(home)!r}; wait for it, or name other seeds or data.'
            ) from None
        yield file.fileno()


def _minutes_in(home: Path) -> dict[str, float]:
    path = home / MINUTES
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
