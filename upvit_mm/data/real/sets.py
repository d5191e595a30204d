"""Prepare a real data set: completely or not at all, and only once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upvit_mm.data.prepare import MANIFEST, read_manifest
from upvit_mm.data.real.cifar10 import write_cifar10
from upvit_mm.data.real.nuclei import write_nuclei
from upvit_mm.data.real.parts import PartCounts, Track
from upvit_mm.data.real.voc_set import write_bccd, write_voc
from upvit_mm.files import write_folder_atomically
from upvit_mm.version import __version__

WRITERS: dict[str, Callable[..., dict[str, PartCounts]]] = {
    'cifar10': write_cifar10,
    'nuclei': write_nuclei,
    'bccd': write_bccd,
    'voc': write_voc,
}


@dataclass(frozen=True)
class PreparedSet:
    """A set on disk.

    Attributes:
        parts: what each part holds.
        source: what it was made from.
        written: False if it was there already.
    """

    parts: Mapping[str, PartCounts]
    source: str
    written: bool


def prepare_set(
    name: str,
    source: Path,
    out: Path,
    track: Track,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> PreparedSet:
    """Write a data set with ``dataset.json``, which says how it was made; do nothing where it is already there.

    Args:
        name: a key of ``WRITERS``.
        source: what the user downloaded.
        out: folder of the set.
        track: wraps an iterable for a progress bar, called with ``description=`` and ``total=``.
        options: arguments of the writer.
        overwrite: write it again. Only a folder that this function wrote is replaced.

    Raises:
        FileNotFoundError, ValueError: the source is not what the set is made from; ``out`` holds something else, or the
            same set with other options.
    """
    settings = {'data': name, 'options': {key: value for key, value in (options or {}).items() if value is not None}}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = read_manifest(out, name)
        same = {key: found.get(key) for key in settings} == settings
        if found.get('data') != name or not (same or overwrite):
            text = f'{found.get("data", "digits")} with {found.get("options") or "no options"}'
            raise ValueError(
                f'out = {str(out)!r}: holds {text}, not {name} with {settings["options"] or "no options"}; name '
                'another folder, remove this one, or replace the same data with --overwrite.'
            )
        if not overwrite:
            parts = {part: PartCounts(**counts) for part, counts in found['parts'].items()}
            return PreparedSet(parts, found['source'], written=False)
    parts = {}

    def write(folder: Path) -> None:
        parts.update(WRITERS[name](source, folder, track, **settings['options']))
        counts = {part: found.to_json() for part, found in parts.items()}
        manifest = {**settings, 'source': str(source), 'parts': counts, 'upvit_mm_version': __version__}
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(f'{text}\n', encoding='utf-8')

    write_folder_atomically(out, write)
    return PreparedSet(parts, str(source), written=True)
