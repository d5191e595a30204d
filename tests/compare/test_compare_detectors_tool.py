"""``tools/compare_detectors.py`` and its launchers as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import forked

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """``run(*words, status=0)``: both streams of a command that runs in ``tmp_path`` on one thread, without a GPU."""

    def call(*words, status: int = 0) -> str:
        env = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable} | forked.ALWAYS
        words = list(map(str, words))
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800, check=False)
        output = done.stdout + done.stderr
        assert done.returncode == status, output[-3000:]
        return output

    return call


@pytest.fixture
def tool(tmp_path):
    """``tool(*words)``: the same of the tool, which is forked and ends with an error."""

    def call(*words) -> str:
        words = [str(ROOT / 'tools/compare_detectors.py'), *map(str, words)]
        status, output = forked.run(words, tmp_path, os.environ | {'PYTHONPATH': str(ROOT)})
        assert status == 1, output[-3000:]
        return output

    return call


def test_two_processes_go_through_the_trainings_together(launch, detector_config, archs, tmp_path):
    wide, narrow = archs('pvtv2')
    detector_config('pvtv2').dump(tmp_path / 'retinanet.py')
    words = ['--backbones', f'up={narrow}', f'dense={wide}', '--seeds', 0, '--repeats', 0, '--work-dir', 'out']
    output = launch('dist_compare_detectors.sh', 'retinanet.py', 2, *words)
    assert output.count('2 trainings, 0 of them finished before') == 1  # the first process alone speaks
    content = json.loads((tmp_path / 'out/detectors.json').read_text())
    assert content['processes'] == 2
    assert content['command'].startswith(f'{ROOT}/tools/dist_compare_detectors.sh retinanet.py 2 --backbones')
    assert [row['name'] for row in content['rows']] == ['up', 'dense']
    for row in content['rows']:
        folder = tmp_path / 'out' / row['name'] / 'seed0'
        metrics = json.loads((folder / 'metrics.json').read_text())['metrics']
        assert row['mean']['bbox_mAP'] == metrics['coco/bbox_mAP']
        assert row['runs'][0]['curve'] == [metrics['coco/bbox_mAP']]
        assert 'MMDistributedDataParallel' in (folder / 'console.log').read_text()


def test_a_mistake_is_one_line(tool, archs):
    wide, _ = archs('pvtv2')
    config = ROOT / 'configs/demo/retinanet_up-pvtv2-micro_fpn_digits.py'
    words = [config, '--work-dir', 'out', '--backbones']
    for more, error in (
        ([f'a={wide}', f'a={wide}'], "backbones: 'a' names two of them"),
        ([f'a={wide}', '--amp'], '--amp: mixed-precision training needs a GPU'),
        ([f'a={wide}', '--auto-scale-lr'], '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size'),
    ):
        output = tool(*words, *more)
        assert output.splitlines()[-1].startswith(f'error: {error}')
    assert 'Traceback' not in output


def test_launchers(run, tmp_path):
    for script in ('dist_compare_detectors', 'slurm_compare_detectors'):
        assert f'{script}.sh' in run(ROOT / f'tools/{script}.sh', status=2)
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    command = ['env', f'PATH={tmp_path}:{os.environ["PATH"]}', 'GPUS=4', ROOT / 'tools/slurm_compare_detectors.sh']
    words = run(*command, 'part', 'job', 'c.py', 'out', '--backbones', 'a=b').splitlines()
    assert {'--partition=part', '--ntasks=4', '--gres=gpu:4'} <= set(words)
    expected = ['c.py', '--work-dir', 'out', '--launcher', 'slurm', '--backbones', 'a=b']
    assert words[-8:] == [str(ROOT / 'tools/compare_detectors.py'), *expected]


def test_a_launcher_that_did_not_start_it(tool, detector_config, archs, tmp_path):
    wide, _ = archs('pvtv2')
    detector_config('pvtv2').dump(tmp_path / 'retinanet.py')
    output = tool('retinanet.py', '--backbones', f'a={wide}', '--work-dir', 'out', '--launcher', 'pytorch')
    assert output.splitlines()[-1].startswith(
        "error: --launcher = 'pytorch': RANK is not set; start with one of tools/dist_"
    )
