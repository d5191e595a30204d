"""Checks in a process of their own, since a broken installation may end the process that imports it."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from upvit_mm.doctor.findings import Check, Finding, carry_out
from upvit_mm.doctor.subject import Subject

_subject: Subject | None = None  # of a child process; what one check builds serves the next


class Isolation:
    """Carries out checks in a child process; the next one gets a new child when one has died.

    What the child prints goes to a file, so that it neither disturbs the report nor is lost: its last line is what a
    dead child leaves.

    Args:
        subject: what the checks of a config look at.
    """

    def __init__(self, subject: Subject | None = None):
        self._subject = subject
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Isolation:
        handle, name = tempfile.mkstemp(suffix='.log')
        os.close(handle)
        self._log = Path(name)
        return self

    def __exit__(self, *exception) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        self._log.unlink()

    def __call__(self, check: Check) -> list[Finding]:
        if self._pool is None:
            context = multiprocessing.get_context('spawn')
            self._pool = ProcessPoolExecutor(1, context, _begin, (self._log, self._subject))
        try:
            return self._pool.submit(_carry_out, check).result()
        except BrokenProcessPool:
            self._pool = None
            lines = self._log.read_text(encoding='utf-8', errors='replace').split('\n')
            last = next((line for line in reversed(lines) if line.strip()), 'it printed nothing')
            found = f'the process died in this check, by a fault in compiled code or out of memory: {last}'
            return [Finding(check.name, 'error', found, check.remedy)]


def _begin(log: Path, subject: Subject | None) -> None:
    global _subject
    _subject = subject
    with log.open('w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _carry_out(check: Check) -> list[Finding]:
    return carry_out(check) if check.section == 'environment' else carry_out(check, _subject)
