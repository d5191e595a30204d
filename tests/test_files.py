import hashlib
import os

import pytest

from upvit_mm.files import sha256_of, write_atomically, write_folder_atomically


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
