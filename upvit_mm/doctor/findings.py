"""Findings, and the list of checks. A new check is one function under ``@check`` in a module of this folder.

Nothing heavy is imported here or at the top of a module with checks: what they need may be missing or broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from upvit_mm.cli import is_mistake

LONGEST = 700  # characters of an error message


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        check: name of the check.
        status: ``'ok'``, ``'warning'`` or ``'error'``.
        found: what is there.
        remedy: what to do about it, or a hint.
    """

    check: str
    status: str
    found: str
    remedy: str = ''


def ok(found: str, remedy: str = '') -> Finding:
    """As checks return it: ``carry_out`` puts in their name, and their remedy where a warning or error has none."""
    return Finding('', 'ok', found, remedy)


def warning(found: str, remedy: str = '') -> Finding:
    """A finding that does not stop a training, see ``ok``."""
    return Finding('', 'warning', found, remedy)


def error(found: str, remedy: str = '') -> Finding:
    """A finding that stops a training or spoils its result, see ``ok``."""
    return Finding('', 'error', found, remedy)


@dataclass(frozen=True)
class Check:
    """One function that looks at one thing.

    Attributes:
        name: of the function.
        section: ``'environment'``, whose checks take nothing, or ``'config'``, whose checks take a ``Subject``.
        run: gives one finding, several, or none where there is nothing to look at.
        needs: checks that must have found something, and no error, before this one makes sense.
        remedy: of whatever the function raises, and of warnings and errors that have none of their own.
    """

    name: str
    section: str
    run: Callable[..., Finding | Iterable[Finding]]
    needs: tuple[str, ...]
    remedy: str


CHECKS: dict[str, Check] = {}


def check(section: str, remedy: str, needs: tuple[str, ...] = ()) -> Callable:
    """Put a function on the list of checks, under its own name."""

    def register(run: Callable) -> Callable:
        assert run.__name__ not in CHECKS, f'two checks are called {run.__name__}'
        CHECKS[run.__name__] = Check(run.__name__, section, run, needs, remedy)
        return run

    return register


def carry_out(check: Check, *subject) -> list[Finding]:
    """What a check finds; whatever it raises is an error that it found."""
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
    """An error in words; those that this package raises on purpose need no type in front."""
    text = str(problem).strip()
    if not (isinstance(problem, Exception) and is_mistake(problem)):
        text = f'{type(problem).__name__}: {text}'
    return text if len(text) <= LONGEST else f'{text[:LONGEST]} ...'


def examine(checks: Sequence[Check], run: Callable[[Check], list[Finding]]) -> Iterator[Finding]:
    """Findings of all checks as they come.

    A check is left out when one that it needs found nothing to look at, or an error. The last finding names those of
    the second kind.

    Args:
        checks: in an order in which a check comes after those that it needs.
        run: carries one out.
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
        yield Finding('left_out', 'warning', f'not looked at: {", ".join(left_out)}', 'fix the errors, then run again')
