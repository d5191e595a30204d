"""Files: atomic writing (an artefact is either whole or not there) and their hashes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part')
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp gives 0600, which colleagues could not read
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text_atomically(path: str | os.PathLike, text: str) -> Path:
    """Write a UTF-8 text file as ``write_atomically`` does."""
    return write_atomically(path, lambda part: part.write_text(text, encoding='utf-8'))


def save_atomically(path: str | os.PathLike, content: Any) -> Path:
    """``torch.save`` as ``write_atomically`` does it; equal content gives equal bytes."""

    def write(part: Path) -> None:
        with part.open('wb') as file:  # given a path, torch writes the temporary name into the archive
            torch.save(content, file)

    return write_atomically(path, write)


def write_folder_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary folder beside ``path``, then put it in the place of ``path``.

    Args:
        path: final folder; an older one is replaced whole.
        write: called with the temporary folder, which it must fill.

    Returns:
        ``path`` as a ``Path``. When ``write`` raises, an older folder at ``path`` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.', suffix='.part') as scratch:
        new, old = Path(scratch, 'new'), Path(scratch, 'old')
        new.mkdir()
        write(new)
        if path.exists():
            path.rename(old)
        new.rename(path)
    return path


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
