"""CIFAR-10 from the official batches and from strips: the same files; and nothing but arrays is unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from upvit_mm.data.real import cifar10
from upvit_mm.data.real.cifar10 import BATCHES, CLASSES, LABELS, META, OFFICIAL, read_cifar10, write_cifar10

BATCH = 20  # pictures in a batch, instead of 10,000


class AsPython2(pickle._Pickler):
    """Writes bytes as Python 2 did, which the official files need: opcode T, length, bytes."""

    dispatch = pickle._Pickler.dispatch | {
        bytes: lambda self, found: self.write(b'T' + len(found).to_bytes(4, 'little') + found)
    }


def pickled(content: object) -> bytes:
    file = io.BytesIO()
    AsPython2(file, protocol=2).dump(content)
    return file.getvalue()


@pytest.fixture
def batches(monkeypatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Pictures ``(20, 32, 32, 3)`` and labels by the name of the batch; two of each class."""
    monkeypatch.setattr(cifar10, 'BATCH', BATCH)
    rng = np.random.default_rng(0)
    names = [name for part in BATCHES.values() for name in part]
    draw = {name: rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8) for name in names}
    return {name: (pixels, rng.permutation(np.repeat(range(10), 2)).tolist()) for name, pixels in draw.items()}


@pytest.fixture
def official(batches, monkeypatch, tmp_path) -> Path:
    """``cifar-10-batches-py``, with checksums to match."""
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    for name, (pixels, labels) in batches.items():
        flat = pixels.transpose(0, 3, 1, 2).reshape(BATCH, -1)
        (folder / name).write_bytes(pickled({'batch_label': name, 'labels': labels, 'data': flat}))
    (folder / META).write_bytes(pickled({'label_names': list(CLASSES)}))
    sums = [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in OFFICIAL]
    known = torchvision.datasets.CIFAR10
    assert [name for name, _ in [*known.train_list, *known.test_list]] + [known.meta['filename']] == list(OFFICIAL)
    monkeypatch.setattr(known, 'train_list', sums[:5])
    monkeypatch.setattr(known, 'test_list', sums[5:6])
    monkeypatch.setattr(known, 'meta', {'filename': META, 'md5': sums[6][1]})
    return folder


@pytest.fixture
def strips(batches, tmp_path) -> Path:
    """The folder of strips, one level below the named one, as in an unpacked package."""
    folder = tmp_path / 'strips/package'
    folder.mkdir(parents=True)
    for name, (pixels, _) in batches.items():
        Image.fromarray(pixels.reshape(BATCH, 1024, 3)).save(folder / f'{name}.png')
    for part, names in BATCHES.items():
        (folder / LABELS[part]).write_text(json.dumps([label for name in names for label in batches[name][1]]))
    return folder.parent


def test_all_forms_give_the_same_pictures(batches, official, strips, tmp_path, track):
    archive = tmp_path / 'cifar-10-python.tar.gz'
    with tarfile.open(archive, 'w:gz') as tar:
        tar.add(official, official.name)
    for k, source in enumerate((official, archive, strips)):
        out = tmp_path / f'out{k}'
        counts = write_cifar10(source, out, track)
        assert [(part, found.pictures, found.classes['cat']) for part, found in counts.items()] == [
            ('train', 100, 10),
            ('val', 20, 2),
        ]
        pixels, labels = batches['data_batch_2']
        path = out / 'train' / CLASSES[labels[3]] / '00023.png'  # the fourth picture of the second batch
        assert np.array_equal(np.asarray(Image.open(path)), pixels[3])
        assert sorted(path.name for path in (out / 'val').iterdir()) == list(CLASSES)  # labels are places in this order


def test_nothing_but_arrays_is_unpickled(official, monkeypatch, tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harm'),)

    content = pickle.dumps(Harmful())
    (official / 'test_batch').write_bytes(content)
    with pytest.raises(ValueError, match=r'test_batch has MD5 .*, the official file has .*; download it again'):
        read_cifar10(official)
    known = [['test_batch', hashlib.md5(content).hexdigest()]]
    monkeypatch.setattr(torchvision.datasets.CIFAR10, 'test_list', known)
    with pytest.raises(ValueError, match=r'test_batch cannot be read: it asks for .*mkdir, which no file of CIFAR-10'):
        read_cifar10(official)
    assert not (tmp_path / 'harm').exists()


def test_other_sources_are_refused(strips, tmp_path):
    labels = strips / 'package' / LABELS['val']
    labels.write_text(json.dumps([0, *json.loads(labels.read_text())[1:]][::-1][:19]))
    with pytest.raises(ValueError, match=r'val has \[.*\] pictures of the classes; must be 2 each'):
        read_cifar10(strips)
    Image.new('RGB', (32, 32)).save(strips / 'package/test_batch.png')
    with pytest.raises(ValueError, match=r'test_batch\.png has 32x32 pixels; must be 1024x20'):
        read_cifar10(strips)
    labels.unlink()
    with pytest.raises(
        ValueError, match=r'is not CIFAR-10: must be cifar-10-python\.tar\.gz .* found .*test_batch\.png'
    ):
        read_cifar10(strips)
    (tmp_path / 'cut.tar.gz').write_bytes(b'\x1f\x8b\x08')
    with pytest.raises(ValueError, match='is not a whole archive'):
        read_cifar10(tmp_path / 'cut.tar.gz')
    with pytest.raises(FileNotFoundError, match='does not exist'):
        read_cifar10(tmp_path / 'no.tar.gz')
