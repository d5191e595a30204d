"""The commands of docs/quickstart.md, as they stand there, on digits and from an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from upvit_mm.arch import ArchSpec

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs/quickstart.md').read_text(encoding='utf-8')
SHORT = {  # in the page, and on this machine
    r'--backbone pvtv2-b0,checkpoints/pvt_v2_b0.pth': '--epochs 1 --backbone arch.json',
    r'(--out small.py)': r'--epochs 1 \1',
    r'480x640': '128x128',
    r'(tools/prune.py .*)': r'\1 --eval-images 2 --round-to 1',
    r'(tools/compare_detectors.py)': r'\1 --repeats 0',
    r'(?m)^python ': f'{sys.executable} ',
    r'tools/': f'{ROOT}/tools/',
}


def blocks(language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', TEXT, re.DOTALL)


def run(folder: Path, *words: str) -> str:
    env = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def run_block(folder: Path, code: str) -> str:
    for there, here in SHORT.items():
        code = re.sub(there, here, code)
    return run(folder, 'bash', '-euc', code)


@pytest.fixture
def folder(digits_folder, tmp_path) -> Path:
    """An empty folder but for the data and a narrow architecture."""
    arch = ArchSpec(
        name='tiny', family='pvtv2', embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
        mlp_hidden_dims=(16, 16, 32, 32), sr_ratios=(8, 4, 2, 1),
    )  # fmt: skip
    arch.save_json(tmp_path / 'arch.json')
    for part in ('train', 'val'):
        shutil.copytree(digits_folder / part, tmp_path / 'data/cells' / part)
        shutil.copy(digits_folder / f'annotations/instances_{part}.json', tmp_path / f'data/cells/{part}.json')
        for source in sorted((digits_folder / 'classification/val').iterdir()):
            target = tmp_path / 'data/sorted' / part / source.name
            target.mkdir(parents=True)
            for picture in sorted(source.iterdir())[:6]:
                shutil.copy(picture, target)
    return tmp_path


def test_a_detector_is_pruned_in_place_and_looked_at(folder):
    in_place, _ = blocks('bash')
    assert ' 0 error' in run_block(folder, in_place)
    content = json.loads((folder / 'work_dirs/compared/detectors.json').read_text())
    assert {'dense', 'half'} <= set(re.findall(r'\w+', json.dumps(content)))
    assert (folder / 'work_dirs/compared/report.html').is_file()
    (look,) = blocks('python')
    run(folder, sys.executable, '-c', look)
    assert len(list((folder / 'painted/vis').glob('*'))) == 2


def test_a_classifier_is_pruned_and_put_into_a_detector(folder):
    _, code = blocks('bash')
    assert ' 0 error' in run_block(folder, code)
    half = ArchSpec.from_json(folder / 'work_dirs/half-sorted/arch.json')
    assert f'in_channels={list(half.embed_dims)}' in (folder / 'small.py').read_text()
    assert list((folder / 'work_dirs/small').glob('*/painted/*'))
