"""``tools/export_onnx.py`` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import forked

pytest.importorskip('onnx', reason='ONNX export needs onnx')
pytest.importorskip('onnxruntime', reason='ONNX export needs onnxruntime')

ROOT = Path(__file__).parents[2]


def run(*words) -> str:
    env = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'COLUMNS': '120'}
    command = [sys.executable, 'tools/export_onnx.py', *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert 'Traceback' not in output
    return output


@pytest.mark.parametrize('family', ['pvtv2'])
def test_files_tables_and_errors(save, tmp_path):
    arch = str(ROOT / 'configs/_base_/archs/pvtv2-micro.json')
    files = save('configs/demo/up-pvtv2-micro_digits.py', **{'model.backbone.arch': arch})
    words = [files.config, files.checkpoint, '--part', 'classifier', '--out', tmp_path / 'model.onnx', '--repeats', 2]
    output = run(*words, '--sizes', '96', '75x131', '--dense', files.config, files.checkpoint)
    for cell in ('exported', 'dense', '96x96', '75x131', 'dense / it', f'{tmp_path}/model.onnx: logits'):
        assert cell in output
    assert (tmp_path / 'model.onnx').stat().st_size > 3_000_000
    words = [*words[:-4], '--out', tmp_path / 'small.onnx', '--sizes', '31x64']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    status, error = forked.run(['tools/export_onnx.py', *map(str, words)], ROOT, environment)
    assert status == 1
    assert error.splitlines()[-1].startswith('error: image of 31x64 pixels: UPPVTv2 needs at least 32 pixels a side')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['arch.json', 'model.onnx', 'model.pth']
