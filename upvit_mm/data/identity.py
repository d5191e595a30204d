"""The identity of data: a result is reused only as long as its data are the same.

Files are identified by their path inside the folder of the settings, their size and the time of their last change.
Listing a folder takes seconds; reading it would take an hour. So a folder that is moved with its times stays the same;
a copy without the times (`cp -r`) counts as other data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

from upvit_mm.data.datasets import PARTS, Dataset, datasets_of
from upvit_mm.data.picture_files import PICTURE_ENDINGS, is_litter
from upvit_mm.files import sha256_of

logger = logging.getLogger('upvit_mm')
NOT_DATA = ('data_root', 'pipeline')  # where the data are, and how they are transformed
ABSENT = 'absent'
_known: ContextVar[dict[str, str] | None] = ContextVar('known', default=None)


@contextlib.contextmanager
def looked_at_once() -> Iterator[None]:
    """Inside it, nothing is read twice: parallel trainings share their data."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def identity_of(dataset: Mapping[str, Any]) -> str | None:
    """SHA-256 of the identity of a data set.

    It covers the settings, without ``data_root`` and the transforms of pictures. It also covers path, size and time of
    change of annotation files and of every file in the folders of pictures. Absolute paths are not part of it.

    Args:
        dataset: settings of a data set of mmdet or mmpretrain, wrappers such as RepeatDataset included.

    Returns:
        None where none of its files are on a local disk.
    """
    innermost = [_files(Dataset('', '', settings)) for settings in datasets_of(dataset)]
    if all(value == ABSENT for files in innermost for value in files.values()):
        return None
    text = json.dumps([_without_root(dataset), innermost], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def run_identity(cfg: Mapping[str, Any], parts: Sequence[str]) -> list[str | None]:
    """Everything that a run reads besides its config: data sets, and files of model, evaluators and ``load_from``.

    Args:
        cfg: a config of mmdet or mmpretrain.
        parts: the parts that run, of ``'train'``, ``'val'``, ``'test'``.

    Returns:
        Identities of the data sets and SHA-256 of the files, in the order of the config.
    """
    assert set(parts) <= set(PARTS), f'parts = {parts}: not parts of a config'
    loaders = [cfg.get(f'{part}_dataloader') or {} for part in parts]
    identities = [identity_of(loader['dataset']) for loader in loaders if loader.get('dataset')]
    naming = [cfg.get('model'), cfg.get('load_from'), *(cfg.get(f'{part}_evaluator') for part in parts)]
    files = [text for text in _texts(naming) if _is_file(text)]
    return identities + [_once(f'sha256 {Path(path).absolute()}', partial(sha256_of, path)) for path in files]


def _without_root(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_root(value) for key, value in node.items() if key not in NOT_DATA}
    if isinstance(node, (list, tuple)):
        return [_without_root(value) for value in node]
    return Path(node).name if isinstance(node, str) and Path(node).is_absolute() else node


def _files(dataset: Dataset) -> dict[str, str]:
    """By key in the settings: identity of the files and folders that a data set reads."""
    settings = dataset.settings
    files = {'ann_file': dataset.ann_file, 'proposal_file': settings.get('proposal_file')}
    found = {key: _identity_at(dataset, name, None) for key, name in files.items() if name}
    classes = settings.get('classes') or (settings.get('metainfo') or {}).get('classes')
    if isinstance(classes, str):  # a file of names, not below data_root
        found['classes'] = _identity_of_path(Path(classes), None)
    by_folder = not dataset.ann_file and dataset.base_name == 'CustomDataset'
    endings = tuple(map(str.lower, settings.get('extensions') or PICTURE_ENDINGS)) if by_folder else None
    for k, prefix in enumerate(dataset.prefixes or ['']):
        if os.path.normpath(dataset.path(prefix)) == '.' and not by_folder:
            logger.warning(
                'a data set of %s names no folder: its pictures are not checked when results are reused; set '
                'data_root or data_prefix.',
                dataset.ann_file,
            )
        else:
            found[f'folder {k}'] = _identity_at(dataset, prefix, endings)
    return found


def _identity_at(dataset: Dataset, name: str, endings: tuple[str, ...] | None) -> str:
    if not dataset.is_here(name):
        return f'elsewhere: {dataset.root} {name}'
    path = dataset.path(name)
    return _once(f'{path.absolute()} {endings}', partial(_identity_of_path, path, endings))


def _identity_of_path(path: Path, endings: tuple[str, ...] | None) -> str:
    if path.is_file():
        return _line(path.name, path.stat())
    return _identity_of_folder(path, endings) if path.is_dir() else ABSENT


def _identity_of_folder(folder: Path, endings: tuple[str, ...] | None) -> str:
    """SHA-256 over all files in a folder, or only those with the ``endings``. Hidden files and litter do not count."""
    digest, folders, visited = hashlib.sha256(), [os.fspath(folder)], set()
    while folders:
        path = folders.pop()
        place = Path(path).stat()
        if (place.st_dev, place.st_ino) in visited:  # a link to a parent folder would cause an endless loop
            continue
        visited.add((place.st_dev, place.st_ino))
        with os.scandir(path) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        lines = [os.path.relpath(path, folder)]
        for entry in inside:
            if entry.is_dir():
                folders += [] if is_litter(entry.name) else [entry.path]
            elif not entry.name.startswith('.') and (endings is None or entry.name.lower().endswith(endings)):
                lines.append(_line(entry.name, entry.stat() if entry.is_file() else None))
        if len(lines) > 1:
            digest.update('\n'.join(lines).encode('utf-8', 'surrogateescape') + b'\n\n')
    return digest.hexdigest()


def _line(name: str, stat: os.stat_result | None) -> str:
    """A file as text; without ``stat`` if it is a broken link."""
    return f'{name} {ABSENT}' if stat is None else f'{name} {stat.st_size} {stat.st_mtime_ns}'


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, (Mapping, list, tuple)):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _texts(value)


def _is_file(text: str) -> bool:
    return len(text) < 4096 and '\0' not in text and Path(text).is_file()


def _once(key: str, make: Callable[[], str]) -> str:
    known = _known.get()
    if known is None:
        return make()
    if key not in known:
        known[key] = make()
    return known[key]
