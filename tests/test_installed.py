"""The package as ``pip install`` brings it: a wheel in a folder, used from another one, without the clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm import config_path
from upvit_mm.registry import MODELS

ROOT = Path(__file__).parents[1]
PARTS = ('pyproject.toml', 'README.md', 'LICENSE', 'requirements', 'upvit_mm', 'tools', 'configs')
RETINANET, CLASSIFIER = 'detection/retinanet_up-pvtv2-b0_fpn_1x_coco.py', 'demo/up-pvtv2-micro_digits.py'
OWN = "_base_ = [__import__('upvit_mm').config_path('{}')]\n"


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because a build leaves folders behind."""
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    names = [*PARTS, *(path.name for path in ROOT.glob('*.yml'))]
    subprocess.run(['cp', '-r', *(ROOT / name for name in names), source], check=True)  # links stay links
    pip('wheel', '--no-build-isolation', '--wheel-dir', out, source)
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp('installed')
    pip('install', '--target', target, wheel)
    return target


def pip(command: str, *words: str | Path) -> None:
    words = (sys.executable, '-m', 'pip', command, '--quiet', '--no-index', '--no-deps', *words)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run(installed, tmp_path) -> Callable[..., str]:
    """``run(*words, status=0)``: both streams of a command in an empty folder; a string is Python code."""
    env = os.environ | {'PYTHONPATH': str(installed), 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1'}

    def call(*words: str | Path, status: int = 0) -> str:
        words = [sys.executable, *map(str, words)]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800)
        assert done.returncode == status, (done.stdout + done.stderr)[-3000:]
        return done.stdout + done.stderr

    return call


@pytest.fixture
def upvit_mm(run, installed) -> Callable[..., str]:
    """``upvit_mm(*words, status=0)``: the command."""
    return lambda *words, **settings: run(installed / 'bin/upvit-mm', *words, **settings)


def test_the_wheel_holds_what_openmmlab_packages_hold(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith('/')]
    assert {name.split('/')[0] for name in names} == {'upvit_mm', f'{wheel.name.split("-py3")[0]}.dist-info'}
    wanted = {str(path.relative_to(ROOT)) for top in ('tools', 'configs') for path in (ROOT / top).rglob('*.*')}
    wanted = {name for name in wanted if '__pycache__' not in name} | {'model-index.yml', 'metafile.yml'}
    assert {name.removeprefix('upvit_mm/.mim/') for name in names if '/.mim/' in name} == wanted
    for name in ('tools/prune.py', f'configs/{RETINANET}', 'metafile.yml'):
        assert zipfile.ZipFile(wheel).read(f'upvit_mm/.mim/{name}') == (ROOT / name).read_bytes()


def test_help_names_every_tool_and_a_typo_is_answered_with_them(upvit_mm):
    tools = {path.stem.replace('_', '-') for path in (ROOT / 'tools').glob('*.py')}
    listed = upvit_mm('--help').partition('tools (')[2].splitlines()[1:]
    assert {line.split()[0] for line in listed} == tools
    said = upvit_mm('prun', status=2).splitlines()[-1]
    assert "error: argument TOOL: invalid choice: 'prun'" in said
    assert all(tool in said for tool in tools)
    assert upvit_mm('prepare_digits', '--nonsense', status=2).startswith('usage: upvit-mm prepare-digits')


def test_the_doctor_finds_no_errors(upvit_mm):
    assert upvit_mm('doctor').splitlines()[-1].endswith(' 0 error')


def test_a_config_in_any_folder_inherits_an_installed_one(run, installed, tmp_path):
    (tmp_path / 'own.py').write_text(OWN.format(RETINANET) + "model = dict(backbone=dict(arch=dict(name='x')))\n")
    lines = run('-c', "from mmengine.config import Config; Config.fromfile('own.py').dump('whole.json')")
    whole = json.loads((tmp_path / 'whole.json').read_text())
    expected = Config.fromfile(ROOT / 'configs' / RETINANET)
    expected.model.backbone.arch.name = 'x'
    assert whole == json.loads(json.dumps(expected.to_dict())), lines
    assert "'_scope_': 'upvit_mm'" not in str(whole)  # mmdet's types would be unknown in it
    (tmp_path / 'own.py').write_text(OWN.format('detection/retinanet_up-pvtv2-b0_1x_coco.py'))
    said = run('-m', 'upvit_mm', 'train', 'own.py', status=1).splitlines()[-1]
    assert said.startswith("error: config 'detection/retinanet_up-pvtv2-b0_1x_coco.py' does not exist in '")
    assert f'near are {RETINANET}' in said
    assert str(installed) in said


def test_tools_on_the_digits_and_with_torchrun(upvit_mm, run, scope, tmp_path):
    scope('mmpretrain')
    assert 'digits: written' in upvit_mm('prepare-digits', '--scenes', '4', '--size', '128', '--out', 'data/digits')
    (tmp_path / 'own.py').write_text(OWN.format(CLASSIFIER))
    torch.save(MODELS.build(Config.fromfile(config_path(CLASSIFIER)).model).state_dict(), tmp_path / 'dense.pth')
    words = ['prune', 'own.py', 'dense.pth', '--budget', 'params=50%', '--work-dir', 'out']
    words += ['--images', 'data/digits/train', '--num-images', '2', '--eval-images', '2']
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=1', '-m', 'upvit_mm']
    run(*torchrun, *words, '--launcher', 'pytorch')
    report = json.loads((tmp_path / 'out/report.json').read_text())
    assert report['command'].startswith('upvit-mm prune own.py dense.pth --budget')


def test_launchers_come_along(installed):
    for script in (ROOT / 'tools').glob('dist_*.sh'):
        done = subprocess.run([installed / 'upvit_mm/.mim/tools' / script.name], capture_output=True, text=True)
        assert (done.returncode, done.stderr.split()[0]) == (2, 'usage:')


def test_config_path():
    assert Path(config_path(RETINANET)).read_text() == (ROOT / 'configs' / RETINANET).read_text()
    with pytest.raises(
        FileNotFoundError, match=r"config 'retinanet' does not exist in .*\.mim/configs'; near are .*retinanet"
    ):
        config_path('retinanet')
