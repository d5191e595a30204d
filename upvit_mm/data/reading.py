"""Pictures are read by threads: decoders and resizing let other threads run meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

WORKERS = 4
Item = TypeVar('Item')


def read_all(
    read: Callable[[int], Item], numbers: Iterable[int], workers: int
) -> tuple[dict[int, Item], dict[int, str]]:
    """What a function reads for each number.

    Args:
        read: may raise any error, because decoders raise what they like; it is called by several threads.
        numbers: each once.
        workers: threads; 0 = the calling one.

    Returns:
        Items by number, and for the numbers that cannot be read the error's text; both in the order of ``numbers``.
    """

    def attempt(number: int) -> tuple[Item | None, str | None]:
        try:
            return read(number), None
        except Exception as error:
            return None, str(error) or type(error).__name__

    numbers = list(numbers)
    if workers:
        with ThreadPoolExecutor(min(workers, max(len(numbers), 1))) as pool:
            results = list(pool.map(attempt, numbers))
    else:
        results = [attempt(number) for number in numbers]
    items = {number: item for number, (item, error) in zip(numbers, results) if error is None}
    return items, {number: error for number, (_, error) in zip(numbers, results) if error is not None}
