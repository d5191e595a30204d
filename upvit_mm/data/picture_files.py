"""Picture files in a folder: which files count, and which folders other programs have left."""

from __future__ import annotations

import logging
import mimetypes
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger('upvit_mm')
PICTURE_ENDINGS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
SHOWN = 5  # of many names
MAX_UNREADABLE = 0.01  # share
LITTER = ('__MACOSX', '@eaDir', '__pycache__')  # folders of macOS, of network storage and of Python


def tried(path: Path) -> str:
    """The absolute path of a relative one, for messages; empty for an absolute one."""
    return '' if path.is_absolute() else f' (tried {str(path.absolute())!r})'


def require_picture_folder(folder: Path) -> None:
    """Refuse what is no folder of pictures for ``--images``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a file, for example one of annotations.
    """
    if folder.is_file():
        raise ValueError(
            f'images = {str(folder)!r}: is a file; must be a folder of pictures. Of an annotation file give the folder '
            'that has its pictures.'
        )
    if not folder.is_dir():
        raise FileNotFoundError(f'image folder {str(folder)!r} does not exist{tried(folder)}.')


@dataclass
class Found:
    """The content of a folder.

    Attributes:
        pictures: files that are read.
        others: number of files that are not read, by ending; hidden ones do not count.
        litter: folders of other programs, whose pictures would be read.
    """

    pictures: int = 0
    others: Counter[str] = field(default_factory=Counter)
    litter: list[str] = field(default_factory=list)

    @property
    def unread(self) -> dict[str, int]:
        """Pictures that are not read, by their ending."""
        return {ending: count for ending, count in self.others.items() if _is_of_picture(ending)}


def _is_of_picture(ending: str) -> bool:
    kind, _ = mimetypes.guess_type(f'x{ending}', strict=False)
    return ending in PICTURE_ENDINGS or (kind or '').startswith('image/')


def is_litter(name: str) -> bool:
    """Whether a folder of this name holds no data: OpenMMLab skips hidden files, but not hidden folders."""
    return name.startswith('.') or name in LITTER


def look_through(folder: str | os.PathLike, endings: Sequence[str]) -> Found:
    """Count the files below a folder, as OpenMMLab walks through it.

    Args:
        folder: the folder, searched recursively.
        endings: endings of files that are read, in lower case, with the dot.
    """
    found, folders = Found(), [os.fspath(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    if is_litter(entry.name):
                        found.litter.append(entry.path)
                    else:
                        folders.append(entry.path)
                elif entry.name.startswith('.'):
                    continue
                elif entry.name.lower().endswith(tuple(endings)):
                    found.pictures += 1
                else:
                    found.others[os.path.splitext(entry.name)[1].lower()] += 1  # noqa: PTH122 (a million of them)
    return found


def check_litter(folder: Path, litter: Sequence[str], what: str) -> None:
    """Refuse folders that other programs have left.

    Args:
        folder: where they were found.
        litter: their paths.
        what: the harm that they do, for the message.

    Raises:
        ValueError: there are some; the message has the command that removes them.
    """
    if litter:
        names = sorted({os.path.relpath(path, folder) for path in litter})[:SHOWN]
        kinds = sorted({Path(path).name for path in litter})
        command = f'rm -r {shlex.join(sorted(litter))}'
        if len(litter) > SHOWN:  # one in every folder, as on network storage
            tests = ' -o '.join(f'-name {shlex.quote(kind)}' for kind in kinds)
            command = rf'find {shlex.quote(str(folder))} -type d \( {tests} \) -prune -exec rm -r {{}} +'
        raise ValueError(
            f'data folder {str(folder)!r} holds folders that other programs have left ({", ".join(names)}): {what}. '
            f'Remove them: {command}'
        )


def counts_text(counts: dict[str, int]) -> str:
    """As ``'3 .webp, 1 .tiff'``."""
    return ', '.join(f'{count} {ending}' for ending, count in sorted(counts.items()))


def leave_out(unreadable: Mapping[Path, object], count: int) -> None:
    """Accept a few pictures that cannot be read; each is named in a warning.

    Args:
        unreadable: the reason by file.
        count: number of all pictures.

    Raises:
        ValueError: more than 1 %.
    """
    for path, reason in unreadable.items():
        logger.warning('%s cannot be read and is left out (%s)', path, reason)
    if len(unreadable) > MAX_UNREADABLE * count:
        raise ValueError(
            f'{len(unreadable)} of {count} images cannot be read, {next(iter(unreadable))} among them; repair the data.'
        )
