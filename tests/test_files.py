import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from upvit_mm.files import (
    check_records,
    save_atomically,
    sealed,
    sha256_of,
    unsealed,
    write_atomically,
    write_folder_atomically,
    write_text_atomically,
)


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_file_and_its_folder_are_made(tmp_path):
    path = write_atomically(str(tmp_path / 'a' / 'b.txt'), lambda part: part.write_text('new'))
    assert path == tmp_path / 'a' / 'b.txt'
    assert path.read_text() == 'new'
    assert names(path.parent) == ['b.txt']


def test_file_is_replaced_only_once_it_is_whole(tmp_path):
    path = tmp_path / 'b.txt'
    path.write_text('old')

    def write(part):
        part.write_text('new')
        assert path.read_text() == 'old'

    write_atomically(path, write)
    assert path.read_text() == 'new'


def test_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / 'b.txt'
    path.write_text('old')

    def write(part):
        part.write_text('half')
        raise RuntimeError('disk full')

    with pytest.raises(RuntimeError, match='disk full'):
        write_atomically(path, write)
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['b.txt']


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / 'b.txt', lambda part: part.write_text(''))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_folder_is_replaced_whole(tmp_path):
    target = tmp_path / 'data'
    write_folder_atomically(target, lambda part: (part / 'old.txt').write_text('old'))
    assert write_folder_atomically(target, lambda part: (part / 'new.txt').write_text('new')) == target
    assert names(target) == ['new.txt']
    assert names(tmp_path) == ['data']


def test_failure_keeps_the_old_folder(tmp_path):
    target = write_folder_atomically(tmp_path / 'data', lambda part: (part / 'old.txt').write_text('old'))

    def write(part):
        (part / 'half.txt').write_text('half')
        raise RuntimeError('disk full')

    with pytest.raises(RuntimeError, match='disk full'):
        write_folder_atomically(target, write)
    assert names(target) == ['old.txt']
    assert names(tmp_path) == ['data']


def test_sha256(tmp_path):
    content = os.urandom((1 << 20) + 7)  # more than one block
    (tmp_path / 'x').write_bytes(content)
    assert sha256_of(tmp_path / 'x') == hashlib.sha256(content).hexdigest()


def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, monkeypatch):
    """Neither Python nor torch names it; torch even raises an error of its own."""
    path, opened = tmp_path / 'b', Path.open
    path.write_text('old')
    monkeypatch.setattr(Path, 'open', lambda self, *args, **kwargs: opened(Path('/dev/full'), *args, **kwargs))
    for save in (write_text_atomically, save_atomically):
        with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
            save(path, 'x' * 100_000)
    monkeypatch.undo()
    assert path.read_text() == 'old'
    assert names(tmp_path) == ['b']


@pytest.mark.parametrize('zipped', [True, False])
def test_torch_reads_a_flipped_bit_of_a_weight_silently_and_we_do_not(tmp_path, zipped):
    path = tmp_path / 'x.pth'
    torch.save({'a': torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    check_records(path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(9).numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)['a'], torch.ones(1000))
    if zipped:
        with pytest.raises(ValueError, match=r'^record x/data/0 does not match its checksum$'):
            check_records(path)
    else:
        check_records(path)  # the old format holds no checksums


@pytest.mark.parametrize('content', [b'', b'<html>', b'PK\x03\x04', b'PK'])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(ValueError, match='File is not a zip file'):
        check_records(tmp_path / 'x.pth')


def test_a_seal_holds_for_the_data_however_they_are_spelled():
    data = {'b': (1, 2), 'a': 0.1, 'c': {'d': None}}
    read = json.loads(json.dumps(dict(sorted(sealed(data).items())), indent=3))
    assert unsealed(read, 'it') == json.loads(json.dumps(data))
    assert unsealed(data, 'it') == data  # written by hand
    with pytest.raises(
        ValueError, match='it does not match its sha256: damaged, or edited by hand; then remove the key'
    ):
        unsealed(read | {'a': 0.2}, 'it')
