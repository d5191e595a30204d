"""Atomic writing: an artefact is either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    Args:
        path: final file; its folder is made when missing.
        write: called with the temporary path, which it must fill.

    Returns:
        ``path`` as a ``Path``. When ``write`` raises, an older file at ``path`` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part')
    os.close(handle)
    try:
        write(Path(part))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)  # mkstemp gives 0600, which colleagues could not read
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return path
