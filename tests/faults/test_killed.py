"""Killed with SIGKILL at three random moments and restarted with the same words, a job ends as an undisturbed one."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import forked
from mmengine.config import Config

from upvit_mm.files import check_records
from upvit_mm.workflow.trainings import Training

KILLS = 3
LATEST = (0.6, 0.3, 0.15)  # of the work; tried in turn, since a start takes more or less and the rest is done sooner
WORKS = {  # what is there once a job has started to work, after its imports
    'detector': '*/vis_data/scalars.json',
    'classifier': '*/vis_data/scalars.json',
    'scoring': 'partial',
    'comparison': '*/*/inputs.sha256',
}
UNLIKE = ('checkpoint', 'checkpoint_sha256', 'seconds_per_step')  # of a run: its folder and its time


def seconds(pid: int) -> float:
    """Processor time that a process has used: unlike time on the wall, its work takes as much beside any neighbour."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def watch(process: BaseProcess) -> Iterator[float]:
    """Its processor time again and again, until it ends."""
    while process.is_alive():
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            yield seconds(process.pid)
        time.sleep(0.005)


def measure(job, works: str) -> tuple[float, float]:
    """Processor time at which an undisturbed run starts to work, and at which it ends."""
    process, start, end = job.start(), None, 0.0
    for end in watch(process):
        if start is None and next(job.out.glob(works), None):
            start = end
    assert process.exitcode == 0, job.said[-3000:]
    return start, end


def kill_at(job, moment: float) -> bool:
    """Whether the job had not ended before that processor time, and so was killed."""
    process = job.start()
    for now in watch(process):
        if now >= moment:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)
            break
    forked.status_of(process)
    assert process.exitcode in (0, -signal.SIGKILL), job.said[-3000:]
    assert_whole(job.out)
    return process.exitcode != 0


def assert_whole(folder: Path) -> None:
    """Every file that has its final name can be read."""
    for path in itertools.chain(folder.rglob('*.pth'), folder.rglob('*.pt')):
        check_records(path)
    for name in ('arch', 'plan', 'report', 'steps', 'record', 'metrics', 'detectors'):
        for path in folder.rglob(f'{name}.json'):
            json.loads(path.read_text())


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)['state_dict']


@pytest.fixture
def storm(job, tmp_path) -> Callable[[str, int], tuple[Path, Path]]:
    """``storm(kind, seed)``: the work dirs of an undisturbed job, and of one that was killed and restarted."""

    def run(kind: str, seed: int) -> tuple[Path, Path]:
        calm, stormy = job(kind, tmp_path / 'calm'), job(kind, tmp_path / 'stormy')
        start, end = measure(calm, WORKS[kind])
        chance = random.Random(seed)
        for latest in LATEST:
            shares = sorted(chance.uniform(0, latest) for _ in range(KILLS))
            moments = [start + (share - before) * (end - start) for before, share in zip([0.0, *shares], shares)]
            if all(kill_at(stormy, moment) for moment in moments):
                stormy.run()
                return calm.out, stormy.out
            shutil.rmtree(stormy.folder)
        return pytest.fail('it ended before it was killed')

    return run


@pytest.mark.parametrize('kind', ['detector', 'classifier'])
def test_training(storm, kind, identical):
    calm, stormy = storm(kind, seed=1)
    names = [sorted(path.name for path in folder.glob('*.pth')) for folder in (calm, stormy)]
    assert names[0] == names[1] == ['epoch_5.pth', 'epoch_6.pth']
    for name in names[0]:
        assert identical(weights(calm / name), weights(stormy / name))
    assert Path((stormy / 'last_checkpoint').read_text()) == stormy / 'epoch_6.pth'
    assert judgements(stormy) == judgements(calm)
    assert set(judgements(calm)) == {2, 4, 6}


def judgements(folder: Path) -> dict[int, dict[str, float]]:
    """The metrics after each epoch that was judged; of an epoch that was judged twice, the later ones."""
    found = {}
    for log in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            entry = json.loads(line) if line.endswith('}') else {}  # a kill may cut the last line off
            if any('/' in key for key in entry):
                found[entry['step']] = {key: value for key, value in entry.items() if 'time' not in key}
    return found


def test_scoring(storm, identical):
    calm, stormy = storm('scoring', seed=2)
    names = sorted(path.name for path in calm.iterdir())
    assert names == sorted(path.name for path in stormy.iterdir() if path.suffix != '.part')
    for name in ('scores.pt', 'arch.json', 'plan.json', 'proxy.txt', 'report.json'):
        assert (calm / name).read_bytes() == (stormy / name).read_bytes(), name
    for name in ('pruned.pth', 'sliced.pth'):
        assert identical(weights(calm / name), weights(stormy / name))


def test_comparison(storm, identical):
    calm, stormy = storm('comparison', seed=3)
    tables = [figures(folder) for folder in (calm, stormy)]
    assert tables[0] == tables[1]
    assert [row['name'] for row in tables[0]['rows']] == ['narrow', 'small']
    for name in ('narrow', 'small'):
        ours, theirs = (weights(folder / name / 'seed0/epoch_3.pth') for folder in (calm, stormy))
        assert identical(ours, theirs)


def figures(folder: Path) -> dict[str, Any]:
    """What ``detectors.json`` holds, but for timings and names of folders."""
    content = json.loads((folder / 'detectors.json').read_text())
    for row in content['rows']:
        for run in row['runs']:
            for key in UNLIKE:
                del run[key]
    return content


def test_a_training_that_was_killed_while_it_was_prepared(tmp_path, monkeypatch):
    """What is left is known for a training's folder: it is no error the next time."""
    first, other = (Training('a', tmp_path, Config(dict(lr=rate))) for rate in (1, 2))
    (tmp_path / '.inputs.sha256.x1y2z3.part').touch()  # before the marker had its name
    first.prepare()
    (tmp_path / 'vis_data').mkdir()
    left, unlink = [], Path.unlink

    def note(path: Path, **settings) -> None:
        if path.name == 'inputs.sha256':
            left.extend(path.name for path in tmp_path.iterdir())
        unlink(path, **settings)

    monkeypatch.setattr(Path, 'unlink', note)
    other.prepare()
    assert left == ['inputs.sha256']  # the marker went last
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.py', 'inputs.sha256']
