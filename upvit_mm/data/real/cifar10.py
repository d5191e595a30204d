"""CIFAR-10 as class folders: 50,000 photographs of 32 x 32 pixels to train on and 10,000 to judge with."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from upvit_mm.data.real.parts import PartCounts, Track

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
SIDE = 32  # pixels
BATCHES = {'train': tuple(f'data_batch_{k}' for k in range(1, 6)), 'val': ('test_batch',)}
BATCH = 10_000  # pictures
META = 'batches.meta'
LABELS = {'train': 'train_lables.json', 'val': 'test_lables.json'}  # of the strips; spelled so
OFFICIAL = (*BATCHES['train'], *BATCHES['val'], META)
STRIPS = (*(f'{name}.png' for names in BATCHES.values() for name in names), *LABELS.values())
Part = tuple[np.ndarray, np.ndarray]  # pictures (n, 32, 32, 3) uint8 in RGB, labels (n,) int64


class BatchUnpickler(pickle.Unpickler):
    """Reads a batch of the official archive; a pickle that asks for anything but numpy's arrays is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """The names that arrays need, whatever numpy called their modules when the file was written.

        Raises:
            UnpicklingError: another name.
        """
        known = {
            '_reconstruct': np.empty(0).__reduce__()[0],  # its module has other names in numpy 1 and 2
            'ndarray': np.ndarray,
            'dtype': np.dtype,
        }
        if module.partition('.')[0] == 'numpy' and name in known:
            return known[name]
        raise pickle.UnpicklingError(f'it asks for {module}.{name}, which no file of CIFAR-10 needs')


def write_cifar10(source: Path, folder: Path, track: Track) -> dict[str, PartCounts]:
    """Write ``{train,val}/CLASS/NUMBER.png``, class folders for mmpretrain's ``CustomDataset``.

    ``val`` is the official test batch, the part that accuracies are reported on; ImageNet's folders have these names
    too. A number is the picture's position in its part.

    Args:
        source: ``cifar-10-python.tar.gz``, its unpacked folder, or an archive or folder of PNG strips.
        folder: of the set.
        track: wraps an iterable for a progress bar.

    Raises:
        ValueError: the source has another form, is damaged, or has other numbers of pictures.
    """
    counts = {}
    for part, (pictures, labels) in read_cifar10(source).items():
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
        for k in track(range(len(labels)), description=f'{part} pictures', total=len(labels)):
            Image.fromarray(pictures[k]).save(folder / part / CLASSES[labels[k]] / f'{k:05d}.png')
        by_class = np.bincount(labels, minlength=len(CLASSES)).tolist()
        counts[part] = PartCounts(len(labels), dict(zip(CLASSES, by_class)))
    return counts


def read_cifar10(source: Path) -> dict[str, Part]:
    """The parts ``'train'`` and ``'val'``, in the order of the files.

    Raises:
        ValueError: see ``write_cifar10``.
    """
    files, others = _files_of(source)
    if set(OFFICIAL) <= set(files):
        parts = _official(files, source)
    elif set(STRIPS) <= set(files):
        parts = {part: _strips(files, part, source) for part in BATCHES}
    else:
        found = ', '.join(sorted(files | others)[:8]) or 'nothing'
        raise ValueError(
            f'source {str(source)!r} is not CIFAR-10: must be cifar-10-python.tar.gz or its folder cifar-10-batches-py '
            f'with {", ".join(OFFICIAL)}; or strips with {", ".join(STRIPS)}; found {found}.'
        )
    for part, (_, labels) in parts.items():
        each = BATCH * len(BATCHES[part]) // len(CLASSES)
        found = np.bincount(labels, minlength=len(CLASSES)).tolist()
        if found != [each] * len(CLASSES):
            raise ValueError(
                f'source {str(source)!r}: {part} has {found} pictures of the classes; must be {each} each.'
            )
    return parts


def _files_of(source: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Content of the files of CIFAR-10 by name, and names of the others; an archive is read once and stays packed."""
    wanted = {*OFFICIAL, *STRIPS}
    files, others = {}, {}
    if source.is_dir():
        for path in sorted([*source.iterdir(), *source.glob('*/*')], reverse=True):  # the nearest of one name counts
            if path.is_file() and path.name in wanted:
                files[path.name] = path.read_bytes()
            else:
                others[path.name] = b''
        return files, others
    if not source.exists():
        raise FileNotFoundError(f'source {str(source)!r} does not exist; check the path.')
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and name in wanted:
                    files[name] = archive.extractfile(member).read()
                else:
                    others[name] = b''
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f'source {str(source)!r} is not a whole archive ({error}): must be cifar-10-python.tar.gz; '
            'download it again.'
        ) from error
    return files, others


def _official(files: Mapping[str, bytes], source: Path) -> dict[str, Part]:
    from torchvision.datasets import CIFAR10  # takes seconds, and parsers of the tools import this file

    sums = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta['filename'], CIFAR10.meta['md5'])])
    contents = {}
    for name in OFFICIAL:
        found = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
        if found != sums[name]:
            raise ValueError(
                f'source {str(source)!r}: {name} has MD5 {found}, the official file has {sums[name]}; '
                'download it again.'
            )
        try:
            contents[name] = BatchUnpickler(io.BytesIO(files[name]), encoding='latin1').load()  # written by Python 2
        except Exception as error:  # a wrong pickle can raise any error
            raise ValueError(f'source {str(source)!r}: {name} cannot be read: {error}.') from error
    names = contents[META]['label_names']
    if list(names) != list(CLASSES):
        raise ValueError(f'source {str(source)!r}: classes = {names}; must be {list(CLASSES)}.')
    parts = {}
    for part, batches in BATCHES.items():
        flat = np.concatenate([contents[name]['data'] for name in batches])
        pictures = flat.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        parts[part] = pictures, np.concatenate([contents[name]['labels'] for name in batches])
    return parts


def _strips(files: Mapping[str, bytes], part: str, source: Path) -> Part:
    """Each row of a strip is one picture, its 1,024 pixels in reading order."""
    strips = []
    for name in BATCHES[part]:
        try:
            with Image.open(io.BytesIO(files[f'{name}.png'])) as picture:
                strips.append(np.asarray(picture.convert('RGB')))
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f'source {str(source)!r}: {name}.png cannot be read ({error}).') from error
        if strips[-1].shape != (BATCH, SIDE * SIDE, 3):
            height, width = strips[-1].shape[:2]
            raise ValueError(
                f'source {str(source)!r}: {name}.png has {width}x{height} pixels; must be {SIDE * SIDE}x{BATCH}.'
            )
    labels = np.array(json.loads(files[LABELS[part]]), dtype=np.int64)
    return np.concatenate(strips).reshape(-1, SIDE, SIDE, 3), labels
