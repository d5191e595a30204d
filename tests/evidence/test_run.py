"""Steps run once each, in order, and go on after an interruption."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from upvit_mm.evidence.run import Run, minutes_of
from upvit_mm.evidence.steps import Step

WRITE = 'import pathlib, os, sys; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(exist_ok=True, parents=True); '


@pytest.fixture
def step(tmp_path):
    """A step whose command adds a line to its output."""

    def step(name: str, *needs: str, rank: int = 0, code: str = '', resumes: bool = True, **more) -> Step:
        folder = tmp_path / name
        output = folder / 'out.txt'
        code = WRITE + (
            code or "open(p, 'a').write(os.environ['UPVIT_MM_SCALE'] + os.environ['OMP_NUM_THREADS'] + '\\n')"
        )
        return Step(name, folder, ('-c', code, str(output)), output, needs, (rank,), resumes, **more)

    return step


def run_of(steps, root: Path, said: list[str] | None = None, **options) -> Run:
    run = Run(steps, root, 'cpu', options.pop('jobs', 1), 1, (said if said is not None else []).append)
    run.program = (sys.executable,)
    return run


def test_order_results_and_a_second_run(step, tmp_path):
    steps, said = [step('late', rank=1), step('b', 'a'), step('a')], []
    assert run_of(steps, tmp_path, said).go() == {'b': 'done', 'a': 'done', 'late': 'done'}
    assert [line.partition(':')[0] for line in said if ' done' in line] == ['a', 'b', 'late']
    assert (tmp_path / 'a/out.txt').read_text() == 'cpu1\n'
    again = []
    assert set(run_of(steps, tmp_path, again).go().values()) == {'done'}
    assert again == ['3 steps, 3 of them finished before']
    assert (tmp_path / 'a/out.txt').read_text() == 'cpu1\n'
    assert set(minutes_of([tmp_path, tmp_path / 'nowhere'])) == {'a', 'b', 'late'}


def test_a_failure_stops_what_needs_it_and_nothing_else(step, tmp_path):
    said = []
    steps = [step('bad', code='sys.exit(3)'), step('after', 'bad'), step('far', 'after'), step('other')]
    state = run_of(steps, tmp_path, said).go()
    assert state == {'bad': 'failed', 'after': 'waiting', 'far': 'waiting', 'other': 'done'}
    assert any(line.startswith('bad: failed with status 3') for line in said)


def test_no_output_is_a_failure(step, tmp_path):
    assert run_of([step('empty', code='pass')], tmp_path).go() == {'empty': 'failed'}


def test_a_changed_step_runs_again_with_all_after_it(step, tmp_path):
    run_of([step('a'), step('b', 'a')], tmp_path).go()
    run_of([step('a', code="open(p, 'a').write('new\\n')"), step('b', 'a')], tmp_path).go()
    assert (tmp_path / 'a/out.txt').read_text() == 'cpu1\nnew\n'
    assert (tmp_path / 'b/out.txt').read_text() == 'cpu1\ncpu1\n'


def test_a_step_that_is_done_in_another_way_now_runs_again(step, tmp_path):
    run_of([step('a')], tmp_path).go()
    run_of([step('a', way='new')], tmp_path).go()
    run_of([step('a', way='new')], tmp_path).go()
    assert (tmp_path / 'a/out.txt').read_text() == 'cpu1\ncpu1\n'


def test_a_training_of_other_inputs_is_kept_apart(step, tmp_path):
    run_of([step('t', resumes=False)], tmp_path).go()
    run_of([step('t', code="open(p, 'a').write('new\\n')", resumes=False)], tmp_path).go()
    assert (tmp_path / 't/out.txt').read_text() == 'new\n'
    (old,) = tmp_path.glob('t.other-*')
    assert (old / 'out.txt').read_text() == 'cpu1\n'


def test_the_time_limit_stops_what_runs_and_the_next_run_goes_on(step, tmp_path):
    sleeping = "open(p.with_name('begun'), 'a').write('x'); import time\n"
    sleeping += "time.sleep(0 if p.with_name('go').exists() else 60); p.touch()"
    steps, started = [step('slow', code=sleeping, resumes=False)], time.monotonic()
    assert run_of(steps, tmp_path).go(minutes=1 / 60) == {'slow': 'left'}
    assert time.monotonic() - started < 30
    (tmp_path / 'slow/go').touch()
    assert run_of(steps, tmp_path).go() == {'slow': 'done'}
    assert (tmp_path / 'slow/begun').read_text() == 'xx'  # in the same folder


def test_two_at_a_time(step, tmp_path):
    meet = "p.with_name('here').touch(); import time; other = pathlib.Path(sys.argv[1]).parents[1] / '{}' / 'here'\n"
    meet += 'while not other.exists(): time.sleep(0.05)\np.touch()'
    steps = [step('a', code=meet.format('b')), step('b', code=meet.format('a'))]
    assert run_of(steps, tmp_path, jobs=2).go(minutes=1) == {'a': 'done', 'b': 'done'}


@pytest.mark.parametrize(('end', 'state'), [('time.sleep(60)', 'left'), ('os._exit(9)', 'failed')])
def test_what_a_step_started_ends_with_it(step, tmp_path, end, state):
    """A loader of pictures that outlives its training would hold the lock, and the next run would be refused."""
    code = "import subprocess, time; child = 'import signal, time; signal.pause()'\n"
    code += "begun = subprocess.Popen([sys.executable, '-c', child], close_fds=False)\n"
    code += "p.with_name('pid').write_text(str(begun.pid)); " + end
    assert run_of([step('slow', code=code)], tmp_path).go(minutes=1 / 30) == {'slow': state}
    child = int((tmp_path / 'slow/pid').read_text())
    assert run_of([step('other')], tmp_path).go() == {'other': 'done'}
    assert not Path(f'/proc/{child}').exists() or ') Z ' in Path(f'/proc/{child}/stat').read_text()


def test_texts_are_written_before_the_step(step, tmp_path):
    text = tmp_path / 'new/config.py'
    run_of(
        [step('a', code=f"open(p, 'w').write(open({str(text)!r}).read())", texts=((text, 'x = 1\n'),))], tmp_path
    ).go()
    assert (tmp_path / 'a/out.txt').read_text() == 'x = 1\n'


def test_a_second_process_is_refused(step, tmp_path):
    first, second = run_of([step('a')], tmp_path), run_of([step('a')], tmp_path)
    started = []
    first.say = lambda text: started.append(text) or pytest.raises(ValueError, second.go).match('another process runs')
    assert first.go() == {'a': 'done'}
    assert started
    assert second.go() == {'a': 'done'}


def test_a_terminated_process_ends_its_steps_and_the_next_goes_on(step, tmp_path):
    """A scheduler sends SIGTERM; a training that outlived it would keep the lock and the processor."""
    waiting = "open(p.with_name('pid'), 'w').write(str(os.getpid())); import time\n"
    waiting += "time.sleep(0 if p.with_name('go').exists() else 60)"
    run, told = run_of([step('slow', code=waiting + '\np.touch()')], tmp_path), tmp_path / 'slow/pid'

    def terminate() -> None:
        while not told.exists() or not told.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(SystemExit, match='143'):
        run.go()
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
    (tmp_path / 'slow/go').touch()
    assert run_of(list(run.steps.values()), tmp_path).go() == {'slow': 'done'}
