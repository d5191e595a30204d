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

    Those are a ValueError, an ImportError or an OSError raised in a file of this package, or about a file that the
    system refused. Everything else passes with its traceback.
    """
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not isinstance(error, OSError) and PACKAGE not in raised_in.parents:
            raise
        sys.exit(f'error: {error}')
