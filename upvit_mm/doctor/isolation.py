"""Run checks in a separate process, because importing a broken installation may end the process."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from upvit_mm.doctor.findings import Check, Finding, carry_out
from upvit_mm.doctor.subject import Subject

_subject: Subject | None = None  # in the child process; checks share what earlier ones built


class Isolation:
    """Run checks in a child process; if it dies, the next check gets a new one.

    The output of the child goes to a file, so that it does not disturb the report. Its last line explains why a child
    died.

    Args:
        subject: the config to check.
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
            found = f'the process died in this check, by an error in compiled code or out of memory: {last}'
            return [Finding(check.name, 'error', found, check.remedy)]


def _begin(log: Path, subject: Subject | None) -> None:
    global _subject
    _subject = subject
    with log.open('w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _carry_out(check: Check) -> list[Finding]:
    return carry_out(check) if check.section == 'environment' else carry_out(check, _subject)
