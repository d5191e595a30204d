"""The parts of a report, and how one runs: in a process of its own, which may fail or be stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import pkgutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from upvit_mm.benchmark.gpu.notebook import Notebook, one_line
from upvit_mm.benchmark.gpu.setting import SETTINGS


@dataclass(frozen=True)
class Part:
    """A part of a report.

    Attributes:
        name: in the report and of its files.
        seconds: its limit when the whole report may take ``TIME_LIMIT``.
        work: the function that measures it, as ``module:name`` in this folder: it is imported where the part runs,
            because a package may be missing.
    """

    name: str
    seconds: int
    work: str


PARTS = (
    Part('tests', 75, 'suite:run_tests'),
    Part('pyramids', 85, 'backbones:measure_pyramids'),
    Part('plain', 45, 'backbones:measure_plain'),
    Part('compiled', 105, 'backbones:measure_compiled'),
    Part('scoring', 45, 'scoring:measure_scoring'),
    Part('detectors', 90, 'detectors:measure_detectors'),
    Part('halves', 35, 'backbones:measure_halves'),
)
TIME_LIMIT = sum(part.seconds for part in PARTS)  # seconds
PRELOADED = ['upvit_mm.models']


def run_part(part: Part, setting: str, device: str, folder: Path, limit: float) -> dict[str, Any]:
    """Run a part in a new process, and stop it with all its processes when its time is over.

    Args:
        part: the part.
        setting: name of the setting.
        device: ``'cpu'`` or ``'cuda'``.
        folder: gets ``NAME.json`` (what was found so far) and ``NAME.log`` (what was printed).
        limit: seconds.

    Returns:
        ``status`` (``'done'``, ``'failed'`` or ``'out of time'``), ``error``, ``notes``, ``rows``, ``seconds`` and
        ``limit``.
    """
    path = folder / f'{part.name}.json'
    path.unlink(missing_ok=True)
    start = time.monotonic()
    process = _context(device).Process(target=_work, args=(part.work, setting, device, str(path)))
    process.start()
    try:
        process.join(limit)
        late = process.is_alive()
    finally:
        _stop(process)
    found = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {'notes': [], 'rows': []}
    if late:
        found |= {'status': 'out of time', 'error': f'stopped after {limit:.0f} s'}
    elif found.get('status', 'running') == 'running':
        found |= {'status': 'failed', 'error': f'the process ended with status {process.exitcode}'}
    return {'name': part.name, **found, 'seconds': time.monotonic() - start, 'limit': limit}


def _context(device: str) -> Any:
    """How processes start: on a CPU as forks of one that has imported everything; CUDA does not survive a fork."""
    context = multiprocessing.get_context('spawn' if device == 'cuda' else 'forkserver')
    context.set_forkserver_preload(PRELOADED)
    return context


def _stop(process: BaseProcess) -> None:
    """End the process and all that it started, which are in its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():  # it has no group yet
        process.kill()
    process.join()


def _work(name: str, setting: str, device: str, path: str) -> None:
    os.setsid()  # its own group, with all that it starts
    log = Path(path).with_suffix('.log').open('w', encoding='utf-8')
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log.fileno(), stream.fileno())
    notebook = Notebook(Path(path))
    try:
        from upvit_mm.benchmark.gpu.operators import replace_missing

        if note := replace_missing(device):
            notebook.note(note)
        pkgutil.resolve_name(f'upvit_mm.benchmark.gpu.{name}')(SETTINGS[setting], device, notebook)
    except Exception as error:
        traceback.print_exc()
        notebook.close('failed', one_line(error))
    else:
        notebook.close('done')
