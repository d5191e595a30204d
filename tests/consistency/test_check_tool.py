"""``tools/check_consistency.py`` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from upvit_mm.arch import ArchSpec
from upvit_mm.models import UPPVTv2
from upvit_mm.pruning import make_plan, prunable_dims, slice_state

ROOT = Path(__file__).parents[2]
CLASSIFIER = 'configs/demo/up-pvtv2-micro_digits.py'
DETECTOR = 'configs/demo/retinanet_up-pvtv2-micro_fpn_digits.py'


@pytest.fixture
def pair_files(tmp_path):
    """A random classifier of the demo's arch and what half of its channels make, as ``tools/prune.py`` writes them."""
    arch = ArchSpec.from_json(ROOT / 'configs/_base_/archs/pvtv2-micro.json')
    torch.manual_seed(0)
    state = {f'backbone.{k}': v for k, v in UPPVTv2(arch).state_dict().items()}
    plan = make_plan(arch, {name: range(0, dim.size, 2) for name, dim in prunable_dims(arch).items()})
    torch.save({'state_dict': state}, tmp_path / 'dense.pth')
    torch.save({'state_dict': slice_state(state, plan)}, tmp_path / 'pruned.pth')
    arch_file, plan_file = plan.target_arch.save_json(tmp_path / 'arch.json'), plan.save(tmp_path / 'plan.json')
    return tmp_path / 'dense.pth', tmp_path / 'pruned.pth', arch_file, plan_file


def run(*words, status: int) -> str:
    env = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'COLUMNS': '120'}
    command = [sys.executable, 'tools/check_consistency.py', *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1800, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == status, output[-3000:]
    assert 'Traceback' not in output
    return output


def test_a_classifier_and_a_detector_on_digits(pair_files, digits_folder, tmp_path):
    """Every file is written though the gate closes: a random network has lost nearly everything."""
    dense, pruned, arch, plan = pair_files
    out = tmp_path / 'out'
    words = ['--dense', CLASSIFIER, dense, '--pruned', DETECTOR, pruned, '--pruned-arch', arch, '--plan', plan]
    words += ['--images', digits_folder / 'annotations/instances_val.json', '--sizes', '64', '128x160']
    output = run(*words, '--fail-under', 'cka=0.999', '--threads', 1, '--work-dir', out, status=1)
    (error,) = (line for line in output.splitlines() if line.startswith('error: '))
    assert 'token consistency is too low: FAIL: cka >= 0.999 in every stage at every size; cka = ' in error
    assert '128x160' in output
    assert {p.name for p in out.iterdir()} == {'consistency.json', 'consistency.md', 'stages.png', 'queries.png'}
    content = json.loads((out / 'consistency.json').read_text())
    assert content['results']['64x64']['stage3']['grid'] == [2, 2]
    assert content['results']['128x160']['stage0']['tokens'] == 2 * 32 * 40
    assert content['settings']['images'] == 2
    assert 'tools/check_consistency.py --dense' in content['command']
    assert len(content['dense']['sha256']) == 64
