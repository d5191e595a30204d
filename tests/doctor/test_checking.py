"""How checks are carried out: guarded, in order, and in a process that may die."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from upvit_mm.doctor import __main__ as program
from upvit_mm.doctor import findings as listed
from upvit_mm.doctor.findings import LONGEST, Check, Finding, carry_out, check, error, examine, ok, warning
from upvit_mm.doctor.isolation import Isolation
from upvit_mm.doctor.subject import Subject

ROOT = Path(__file__).parents[2]


def made(name, *findings, needs=(), section='environment'):
    return Check(name, section, lambda *subject: list(findings), needs, 'the remedy')


def die():
    os.write(2, b'terminate called\n\n')
    os.abort()


def speak():
    print('noise on stdout')
    return ok(str(os.getpid()))


def look(subject):
    return ok(f'{subject.config} in {os.getpid()}')


# ------------------------------------------------------------------- in order


def test_a_check_is_one_function(monkeypatch):
    monkeypatch.setattr(listed, 'CHECKS', listed.CHECKS.copy())

    @check('environment', remedy='do it', needs=('torch',))
    def tidy():
        return warning('untidy')

    assert listed.CHECKS['tidy'] == Check('tidy', 'environment', tidy, ('torch',), 'do it')
    assert carry_out(listed.CHECKS['tidy']) == [Finding('tidy', 'warning', 'untidy', 'do it')]
    with pytest.raises(AssertionError, match='two checks are called tidy'):
        check('environment', remedy='')(tidy)


def test_remedies():
    findings = carry_out(made('a', ok('fine'), ok('fine', 'a hint'), error('bad'), error('bad', 'its own')))
    assert [finding.remedy for finding in findings] == ['', 'a hint', 'the remedy', 'its own']


def test_whatever_is_raised_is_found():
    def stop():
        sys.exit('no way')

    def fail():
        raise KeyError('x' * 2 * LONGEST)

    (stopped,) = carry_out(Check('a', 'environment', stop, (), 'the remedy'))
    assert stopped == Finding('a', 'error', 'SystemExit: no way', 'the remedy')
    (failed,) = carry_out(Check('b', 'environment', fail, (), 'the remedy'))
    assert failed.found.startswith("KeyError: 'xx")
    assert len(failed.found) == LONGEST + len(' ...')


def test_checks_wait_for_those_that_they_need():
    checks = [
        made('sound', ok('')),
        made('bad', ok(''), error('bad')),
        made('nothing'),
        made('after_sound', warning('')),
        made('after_bad', ok(''), needs=('sound', 'bad')),
        made('after_that', ok(''), needs=('after_bad',)),
        made('after_nothing', error(''), needs=('nothing',)),
        made('after_warning', ok(''), needs=('after_sound',)),
    ]
    *findings, last = examine(checks, carry_out)
    assert [finding.check for finding in findings] == ['sound', 'bad', 'bad', 'after_sound', 'after_warning']
    assert (last.check, last.found) == ('left_out', 'not checked: after_bad, after_that')
    assert [finding.check for finding in examine(checks[:1], carry_out)] == ['sound']


# ------------------------------------------------------- in a process that dies


def test_a_process_that_dies(capfd):
    death = Check('death', 'environment', die, (), 'reinstall')
    speech = Check('speech', 'environment', speak, (), '')
    config = Check('config', 'config', look, (), '')
    with Isolation(Subject('some.py')) as run:
        (first,), (again,) = run(speech), run(speech)
        (dead,) = run(death)
        (after,), (last,) = run(speech), run(config)
    assert first == again
    assert first.found != str(os.getpid())
    assert (dead.status, dead.remedy) == ('error', 'reinstall')
    assert dead.found.endswith('by an error in compiled code or out of memory: terminate called')
    assert after.found not in (first.found, str(os.getpid()))
    assert last.found == f'some.py in {after.found}'
    assert capfd.readouterr() == ('', '')
    assert not run._log.exists()


# ---------------------------------------------------------------- the program


@pytest.fixture
def few(monkeypatch):
    """``few(*findings)``: as if there were one check, which finds those."""

    def set_up(*findings):
        monkeypatch.setattr(program, 'CHECKS', {'only': made('only', *findings)})
        monkeypatch.setattr(program, 'Isolation', lambda subject: HereAndNow())

    class HereAndNow:
        def __enter__(self):
            return carry_out

        def __exit__(self, *exception):
            pass

    return set_up


def test_report(few, capsys):
    few(ok('fine'), warning('odd', 'look'), ok('also\nfine'))
    assert program.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'environment',
        'ok       only: fine',
        'warning  only: odd',
        '         -> look',
        'ok       only: also',
        '         fine',
        '2 ok, 1 warning, 0 error',
    ]
    few(ok('fine'), error('bad'))
    assert program.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        'error    only: bad',
        '         -> the remedy',
        '1 ok, 0 warning, 1 error',
    ]


def test_json(few, capsys):
    few(ok('fine'), error('bad'))
    assert program.main(['--json']) == 1
    assert json.loads(capsys.readouterr().out) == [
        {'check': 'only', 'status': 'ok', 'found': 'fine', 'remedy': ''},
        {'check': 'only', 'status': 'error', 'found': 'bad', 'remedy': 'the remedy'},
    ]


def test_words_that_do_not_fit(capsys):
    with pytest.raises(SystemExit) as end:
        program.main(['--gpus', '8'])
    assert end.value.code == 2
    assert 'belong to a config' in capsys.readouterr().err
    with pytest.raises(ValueError, match=r'batch_size = 0: must be at least 1'):
        Subject('some.py', batch_size=0)


def test_options_that_are_no_pairs(capsys):
    with pytest.raises(SystemExit):
        program.main(['config.py', '--cfg-options', 'a=1', 'foo'])
    assert "--cfg-options 'foo': must be key=value" in capsys.readouterr().err


def test_the_tool_with_a_package_that_kills_its_importer(tmp_path):
    (tmp_path / 'mmdet').mkdir()
    (tmp_path / 'mmdet/__init__.py').write_text('import os; os.write(2, b"undefined symbol\\n"); os.abort()')
    env = os.environ | {'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)]), 'OMP_NUM_THREADS': '1'}
    words = [sys.executable, 'tools/doctor.py', '--json']
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert (done.returncode, done.stderr) == (1, '')
    findings = [Finding(**finding) for finding in json.loads(done.stdout)]
    assert all(set(dataclasses.asdict(finding)) == {'check', 'status', 'found', 'remedy'} for finding in findings)
    assert {finding.status for finding in findings} == {'ok', 'error', 'warning'}
    status = {finding.check: finding.status for finding in findings}
    assert status['openmmlab'] == 'error'
    assert status['torch'] == status['one_line'] == 'ok'
    left_out = 'transformers, mmcv_operators, mmengine_checkpoints, mmcv_operators_on_gpu, registry'
    assert findings[-1].found == f'not checked: {left_out}'
    (killed,) = [finding for finding in findings if finding.status == 'error']
    assert killed.found.endswith('undefined symbol')
