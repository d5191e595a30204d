"""A work dir that is full or cannot be written: what was finished stays as it was, and the tool says one line."""

from __future__ import annotations

import ctypes
import re
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

FIRST = {  # what leaves a finished work dir, and what goes on in it
    'detector': ['--cfg-options', 'train_cfg.max_epochs=1'],
    'scoring': ['--method', 'random', '--eval-images', 0],
}
SECOND = {
    'detector': ['--cfg-options', 'train_cfg.max_epochs=2'],
    'scoring': ['--method', 'random', '--eval-images', 0, '--seed', 1],
}


@pytest.fixture(scope='module')
def finished(job, tmp_path_factory) -> Callable[[str], Path]:
    """``finished(kind)``: the folder of a job that was done once; not to be changed."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind) / 'done'
            job(kind, folders[kind], *FIRST[kind]).run()
        return folders[kind]

    return make


@pytest.fixture
def again(finished, job, tmp_path) -> Callable:
    """``again(kind)``: the job that goes on in a copy of the finished folder."""

    def make(kind: str):
        shutil.copytree(finished(kind), tmp_path / kind)
        pointer = tmp_path / kind / 'out/last_checkpoint'
        if pointer.is_file():
            pointer.write_text(str(pointer.parent / 'epoch_1.pth'))
        return job(kind, tmp_path / kind, *SECOND[kind])

    return make


def full(size: int) -> Callable[[], None]:
    """To call in a process, which then writes no file above ``size`` bytes, as on a disk with that much room."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


def obey() -> None:
    """To call in a process, which permissions then hold for, whoever runs it: without root's right to override them."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable rights below 32, then those above
    assert libc.capget(header, sets) == 0
    sets[0] &= ~(1 << 1)  # CAP_DAC_OVERRIDE
    assert libc.capset(header, sets) == 0


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but mmengine's logs and the copy of the config, which every start writes."""
    paths = (path for path in folder.rglob('*') if path.is_file() and path.suffix not in ('.py', '.log'))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if 'vis_data' not in path.parts}


def assert_one_line(said: str, match: str) -> None:
    errors = [line for line in said.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1, said[-3000:]
    assert re.search(match, errors[0])
    assert 'Traceback' not in said


def test_a_training_on_a_full_disk(again):
    job = again('detector')
    before = contents(job.out)
    assert_one_line(job.run(status=1, before=full(300_000)), r"File too large: '.*epoch_2\.pth'")
    assert contents(job.out) == before  # no temporary file either
    job.run()
    assert contents(job.out).keys() - before.keys() == {'epoch_2.pth'}


def test_a_pruning_on_a_full_disk(again):
    """Scores and plan have room, the network has not."""
    job = again('scoring')
    before = contents(job.out)
    said = job.run(status=1, before=full(len(before['pruned.pth']) // 2))
    assert_one_line(said, r"File too large: '.*sliced\.pth'")
    after = contents(job.out)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {'scores.pt', 'plan.json', 'steps.json'}
    job.run()
    assert contents(job.out)['pruned.pth'] != before['pruned.pth']


def test_a_comparison_on_a_disk_that_is_full(job, tmp_path):
    job = job('comparison', tmp_path / 'full')
    assert_one_line(
        job.run(status=1, before=full(300_000)), r"error: narrow, seed 0: .*File too large: '.*epoch_1\.pth'"
    )
    assert not [path for path in job.out.rglob('*') if path.suffix in ('.pth', '.part')]


@pytest.mark.parametrize('kind', FIRST)
def test_a_work_dir_that_cannot_be_written(again, kind):
    job = again(kind)
    before = contents(job.out)
    job.out.chmod(0o555)
    try:
        said = job.run(status=1, before=obey)
    finally:
        job.out.chmod(0o755)
    assert_one_line(said, rf"Permission denied: '.*{'' if kind == 'detector' else 'scores.pt'}")
    assert contents(job.out) == before


def test_a_work_dir_that_is_a_file(job, tmp_path):
    job = job('comparison', tmp_path)
    job.out.write_text('not a folder')
    assert_one_line(job.run(status=1), r"Not a directory: '.*out/narrow/seed0'")
    assert job.out.read_text() == 'not a folder'
