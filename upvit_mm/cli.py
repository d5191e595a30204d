"""What the tools share: tables on the terminal, a look for the GPU, and how they end (one line for a mistake)."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

PACKAGE = Path(__file__).parent


def table_of(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table to print, its first column to the left and figures to the right."""
    table = Table(title=title)
    for k, name in enumerate(header):
        table.add_column(name, justify='right' if k else 'left', overflow='fold')
    for row in rows:
        table.add_row(*row)
    return table


def default_device() -> str:
    """``'cuda'`` where torch sees a GPU, else ``'cpu'``."""
    import torch  # the doctor uses this module where torch does not import

    return 'cuda' if torch.cuda.is_available() else 'cpu'


def check_device(device: str) -> None:
    """Refuse a GPU that is not there.

    Raises:
        ValueError: torch sees none.
    """
    import torch

    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'device = {device!r}: torch {torch.__version__} sees no GPU on this machine; take cpu.')


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that this package raised on purpose into ``error: ...`` and exit status 1.

    Those are the mistakes that ``is_mistake`` knows. Everything else passes with its traceback.
    """
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        if not is_mistake(error):
            raise
        sys.exit(f'error: {error}')


def is_mistake(error: Exception) -> bool:
    """Whether this package raised on purpose: in one of its files, or an OSError about a file the system refused."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return isinstance(error, OSError) or PACKAGE in raised_in.parents
