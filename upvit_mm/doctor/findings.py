"""Findings, and the list of checks. A new check is one function under ``@check`` in a module of this folder.

No heavy imports here or at the top of a module with checks: what they need may be missing or broken.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from upvit_mm.cli import is_mistake

LONGEST = 700  # characters of an error message


@dataclass(frozen=True)
class Finding:
    """One finding of a check.

    Attributes:
        check: name of the check.
        status: ``'ok'``, ``'warning'`` or ``'error'``.
        found: a description of the finding.
        remedy: what to do about it, or a hint.
    """

    check: str
    status: str
    found: str
    remedy: str = ''


def ok(found: str, remedy: str = '') -> Finding:
    """A finding for a check to return; ``carry_out`` adds the name and, where there is none, the check's remedy."""
    return Finding('', 'ok', found, remedy)


def warning(found: str, remedy: str = '') -> Finding:
    """A warning for a check to return; see ``ok``."""
    return Finding('', 'warning', found, remedy)


def error(found: str, remedy: str = '') -> Finding:
    """An error for a check to return; see ``ok``."""
    return Finding('', 'error', found, remedy)


@dataclass(frozen=True)
class Check:
    """One function that checks one thing.

    Attributes:
        name: name of the function.
        section: ``'environment'``, whose checks take no argument, or ``'config'``, whose checks take a ``Subject``.
        run: gives one finding, several, or none if there is nothing to check.
        needs: checks that must have findings without an error before this one runs.
        remedy: remedy for errors that the function raises, and for warnings and errors without their own.
    """

    name: str
    section: str
    run: Callable[..., Finding | Iterable[Finding]]
    needs: tuple[str, ...]
    remedy: str


CHECKS: dict[str, Check] = {}


def check(section: str, remedy: str, needs: tuple[str, ...] = ()) -> Callable:
    """Add a function to the list of checks, with its own name."""

    def register(run: Callable) -> Callable:
        assert run.__name__ not in CHECKS, f'two checks are called {run.__name__}'
        CHECKS[run.__name__] = Check(run.__name__, section, run, needs, remedy)
        return run

    return register


def carry_out(check: Check, *subject) -> list[Finding]:
    """The findings of a check; an exception becomes an error."""
    try:
        found = check.run(*subject)
        findings = [found] if isinstance(found, Finding) else list(found)
    except (Exception, SystemExit) as problem:
        findings = [error(message_of(problem))]
    return [
        replace(finding, check=check.name, remedy=finding.remedy or ('' if finding.status == 'ok' else check.remedy))
        for finding in findings
    ]


def message_of(problem: BaseException) -> str:
    """The text of an error; errors that this package raises on purpose need no type before it."""
    text = str(problem).strip()
    if not (isinstance(problem, Exception) and is_mistake(problem)):
        text = f'{type(problem).__name__}: {text}'
    return text if len(text) <= LONGEST else f'{text[:LONGEST]} ...'


def examine(checks: Sequence[Check], run: Callable[[Check], list[Finding]]) -> Iterator[Finding]:
    """Yield the findings of all checks.

    A check is skipped when one that it needs had nothing to check, or found an error. The last finding names those
    skipped because of an error.

    Args:
        checks: ordered, each check after those that it needs.
        run: runs one check.
    """
    outcome: dict[str, str] = {}
    for check in checks:
        before = {outcome.get(name, 'fine') for name in check.needs}
        if before & {'failed', 'left out'}:
            outcome[check.name] = 'left out'
        elif 'absent' in before:
            outcome[check.name] = 'absent'
        else:
            findings = run(check)
            yield from findings
            failed = any(finding.status == 'error' for finding in findings)
            outcome[check.name] = 'failed' if failed else 'fine' if findings else 'absent'
    if left_out := [name for name, how in outcome.items() if how == 'left out']:
        yield Finding('left_out', 'warning', f'not checked: {", ".join(left_out)}', 'fix the errors, then run again')


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The warnings that this package writes into its log inside the ``with`` block."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = logging.getLogger('upvit_mm')
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
