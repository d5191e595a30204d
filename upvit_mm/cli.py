"""How the tools end: a mistake of the user gives one clear line, a fault in the code its whole traceback."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent


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
