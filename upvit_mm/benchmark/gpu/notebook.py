"""What a part of a report has found so far, on disk: a part that is stopped keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from upvit_mm.files import write_text_atomically


class Notebook:
    """Rows and notes of one part, in a file after each of them.

    Args:
        path: a JSON file, replaced.
    """

    def __init__(self, path: Path):
        self.path = path
        self.content: dict[str, Any] = {'status': 'running', 'error': None, 'notes': [], 'rows': []}
        self._write()

    def add(self, **row: Any) -> None:
        """Add a row of figures."""
        self.content['rows'].append(row)
        self._write()

    def note(self, text: str) -> None:
        """Add a sentence for the reader, once."""
        if text not in self.content['notes']:
            self.content['notes'].append(text)
            self._write()

    def close(self, status: str, error: str | None = None) -> None:
        """Say how the part ended."""
        self.content |= {'status': status, 'error': error}
        self._write()

    def _write(self) -> None:
        write_text_atomically(self.path, json.dumps(self.content, indent=2) + '\n')


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    first = next(iter(str(error).strip().splitlines()), '')
    return f'{type(error).__name__}: {first[:300]}' if first else type(error).__name__
