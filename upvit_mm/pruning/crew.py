"""The processes that share a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar('Value')


@dataclass(frozen=True)
class Crew:
    """The processes that share a job: this one alone (``workflow/processes.py`` has those of a launcher).

    All of them must call ``share`` and ``collect`` in the same order.

    Attributes:
        rank: number of this process; 0 collects.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, make: Callable[[], Value]) -> Value:
        """The value that the first process makes, for all processes."""
        assert self.size == 1, 'one process has no others'
        return make()

    def collect(self, value: Value) -> list[Value] | None:
        """For the first process the values of all processes by rank; None for others."""
        assert self.size == 1, 'one process has no others'
        return [value]

    def gather(self, value: Value) -> list[Value]:
        """For all processes the values of all, by rank."""
        everyones = self.collect(value)
        return self.share(lambda: everyones)

    def leave(self) -> None:
        """Stop communicating until the next ``share`` or ``collect``."""
