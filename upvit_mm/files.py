"""Files: atomic writing (complete or not at all), hashes, and detection of damage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file in the folder of ``path``, then rename it to ``path``.

    Args:
        path: final file; its folder is made if it is missing.
        write: called with the temporary path, which it must fill.

    Returns:
        ``path`` as a ``Path``. If ``write`` raises, an older file at ``path`` does not change.

    Raises:
        OSError: the system refused the file; the error names it.
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
        part.chmod(0o666 & ~umask)  # mkstemp gives 0600, which other users cannot read
        part.replace(path)
    except OSError as error:
        if error.filename or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the error of a full disk names no file
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text_atomically(path: str | os.PathLike, text: str) -> Path:
    """Write a UTF-8 text file with ``write_atomically``."""
    return write_atomically(path, lambda part: part.write_text(text, encoding='utf-8'))


def update_text(path: str | os.PathLike, text: str) -> Path:
    """``write_text_atomically``, if that changes the file."""
    path = Path(path)
    if path.is_file() and path.read_bytes() == text.encode():
        return path
    return write_text_atomically(path, text)


def save_atomically(path: str | os.PathLike, content: Any) -> Path:
    """``torch.save`` with ``write_atomically``; equal content gives equal bytes."""
    import torch  # takes seconds, and parsers of the tools import this file

    def write(part: Path) -> None:
        with part.open('wb') as file:  # with a path, torch would write the temporary name into the archive
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's own error, raised while it handled the system's
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    return write_atomically(path, write)


def write_folder_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary folder next to ``path``, then replace ``path`` by it.

    Args:
        path: final folder; an older one is replaced completely.
        write: called with the temporary folder, which it must fill.

    Returns:
        ``path`` as a ``Path``. If ``write`` raises, an older folder at ``path`` does not change.
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


def empty_folder(folder: Path, last: Path) -> None:
    """Remove the content of a folder, and last the file ``last``, which says what the folder is."""
    for path in sorted(folder.iterdir(), key=lambda path: path == last):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def cache_folder(part: str) -> Path:
    """Where something is kept for later runs: a folder in ``$UPVIT_MM_CACHE``, by default ``~/.cache/upvit_mm``."""
    ours = os.environ.get('UPVIT_MM_CACHE')
    return Path(ours or Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'upvit_mm')).expanduser() / part


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_records(path: str | os.PathLike) -> None:
    """Compare a file of ``torch.save`` with the checksums in it: torch itself reads changed weights without a message.

    It takes 0.06 to 0.09 s for 100 MB. A file in torch's old format has no checksums and passes.

    Raises:
        ValueError: a part is damaged; the message names it, but not the file.
    """
    with Path(path).open('rb') as file:
        if file.read(1) == b'\x80':  # a bare pickle, the old format
            return
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
        except Exception as error:  # a damaged directory makes zipfile raise almost any error
            raise ValueError(str(error) or type(error).__name__) from error
    if damaged is not None:
        raise ValueError(f'record {damaged} does not match its checksum')


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with their own ``sha256``: in a JSON file a changed digit would look like another valid value."""
    return {**content, 'sha256': _digest(content)}


def unsealed(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The data without their ``sha256``; data without one, written by hand, pass.

    Args:
        content: result of ``sealed``.
        name: name of the data in messages.

    Raises:
        ValueError: the data are not those that were sealed.
    """
    content = dict(content)
    seal = content.pop('sha256', None)
    if seal is not None and seal != _digest(content):
        raise ValueError(f'{name} does not match its sha256: damaged, or edited by hand; then remove the key sha256.')
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
