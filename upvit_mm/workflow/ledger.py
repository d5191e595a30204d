"""Which steps of a job are done: a step is skipped when neither its inputs nor its files have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.version import __version__


def fingerprint(*inputs: Any) -> str:
    """SHA-256 of plain data and of this package's version."""
    text = json.dumps([__version__, *inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Ledger:
    """The record ``steps.json`` of a work dir: for each step the fingerprint of its inputs, the hashes of its files and
    its data.

    Args:
        folder: the work dir. A record that cannot be read counts as empty.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def is_current(self, step: str, inputs: str) -> bool:
        """Whether a step was done with these inputs and its files have not changed."""
        entry = self._read().get(step)
        if not isinstance(entry, dict) or entry.get('inputs') != inputs or not isinstance(entry.get('files'), dict):
            return False
        paths = {self.folder / name: digest for name, digest in entry['files'].items()}
        return all(path.is_file() and sha256_of(path) == digest for path, digest in paths.items())

    def record(self, step: str, inputs: str, *files: str, data: Mapping[str, str] | None = None) -> None:
        """Record that a step is done.

        Args:
            step: its name.
            inputs: fingerprint of its inputs.
            *files: files that it wrote, relative to the work dir.
            data: identities of the data sets that it read, by name.
        """
        entries = self._read()
        hashes = {name: sha256_of(self.folder / name) for name in files}
        entries.pop(step, None)  # the most recent step is the last
        entries[step] = {'inputs': inputs, 'files': hashes, 'data': dict(data or {})}
        write_text_atomically(self.folder / 'steps.json', json.dumps(entries, indent=2) + '\n')

    def data_seen(self, name: str) -> str | None:
        """Identity of a data set when a step last read it; None if no step did."""
        entries = [entry for entry in self._read().values() if isinstance(entry, dict)]
        seen = [entry['data'] for entry in entries if isinstance(entry.get('data'), dict)]
        return next((data[name] for data in reversed(seen) if name in data), None)

    def _read(self) -> dict[str, Any]:
        try:
            entries = json.loads((self.folder / 'steps.json').read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}
