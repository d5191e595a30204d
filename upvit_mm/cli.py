"""Shared by the tools: tables on the terminal, the choice of the device, and one-line errors."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

PACKAGE = Path(__file__).parent
INTERRUPTED = 130  # 128 + SIGINT


def table_of(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table to print: the first column is left-aligned, numbers are right-aligned."""
    table = Table(title=title)
    for k, name in enumerate(header):
        table.add_column(name, justify='right' if k else 'left', overflow='fold')
    for row in rows:
        table.add_row(*row)
    return table


def default_device() -> str:
    """``'cuda'`` if torch sees a GPU, otherwise ``'cpu'``."""
    import torch  # the doctor uses this module even if torch does not import

    return 'cuda' if torch.cuda.is_available() else 'cpu'


def check_device(device: str) -> None:
    """Refuse a GPU that is not there.

    Raises:
        ValueError: torch sees none.
    """
    import torch

    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'device = {device!r}: torch {torch.__version__} sees no GPU on this machine; use cpu.')


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that this package raised on purpose into ``error: ...`` and exit status 1.

    ``is_mistake`` decides which errors these are. All others keep their traceback. Ctrl-C ends in one line too, with
    the exit status of shells for it, 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, ImportError, OSError) as error:
        if not is_mistake(error):
            raise
        sys.exit(f'error: {with_flags(str(error), sys.argv[1:])}')


def with_flags(text: str, words: Sequence[str]) -> str:
    """A message in which settings are written as the flags that the user gave: ``--round-to = 0``.

    Args:
        text: the message; it names a setting and its value as ``round_to = 0``.
        words: the command line.
    """
    for flag in {word.partition('=')[0] for word in words if word.startswith('--')}:
        setting = re.escape(flag.removeprefix('--').replace('-', '_'))
        text = re.sub(rf'(?<![\w.-]){setting}(?= = )', flag, text)
    return text


def is_mistake(error: Exception) -> bool:
    """Whether this package raised the error on purpose: in one of its files, or an OSError about a refused file."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, OSError) or PACKAGE in raised_in.parents
