"""The commands of docs/quickstart.md, as they stand there, on real pictures and from an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import forked

from upvit_mm.arch import ArchSpec
from upvit_mm.workflow.own_config import OwnConfig

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / 'tests/fixtures/pictures'
TEXT = (ROOT / 'docs/quickstart.md').read_text(encoding='utf-8')
SHORT = {  # in the page, and on this machine
    r'--backbone pvtv2-b0,checkpoints/pvt_v2_b0.pth': '--epochs 1 --backbone arch.json',
    r'(--out small.py)': r'--epochs 1 \1',
    r'480x640': '120x160',
    r'(tools/prune.py .*)': r'\1 --eval-images 2 --round-to 1',
    r'(tools/compare_detectors.py)': r'\1 --repeats 0',
    # not forked, to see that they import what they need
    r'^python (tools/init.py detector)': rf'{sys.executable} \1',
    r'python (tools/compare_detectors.py)': rf'{sys.executable} \1',
    r'tools/': f'{ROOT}/tools/',
}
PYTHON = 'python() {{ printf "%q " "$@" >&{out}; echo >&{out}; read -r <&{back}; }}\n'  # hands its words on and waits
ENVIRONMENT = os.environ | {'PYTHONPATH': str(ROOT)} | forked.ALWAYS


def blocks(language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', TEXT, re.DOTALL)


def python(folder: Path, *words: str) -> str:
    status, said = forked.run(list(words), folder, ENVIRONMENT)
    assert status == 0, said[-4000:]
    return said


def run_block(folder: Path, code: str) -> str:
    for there, here in SHORT.items():
        code = re.sub(there, here, code)
    (read, out), (back, write) = os.pipe(), os.pipe()
    command, said = ['bash', '-euc', PYTHON.format(out=out, back=back) + code], ''
    with (
        subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, pass_fds=(out, back)) as bash,
        os.fdopen(read) as asked,
        os.fdopen(write, 'w') as answers,
    ):
        os.close(out)
        os.close(back)
        for words in asked:
            said += python(folder, *shlex.split(words))
            print(file=answers, flush=True)
    assert bash.returncode == 0
    return said


@pytest.fixture
def folder(tmp_path) -> Path:
    """An empty folder but for a narrow architecture."""
    arch = ArchSpec(
        name='tiny', family='pvtv2', embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
        mlp_hidden_dims=(16, 16, 32, 32), sr_ratios=(8, 4, 2, 1),
    )  # fmt: skip
    arch.save_json(tmp_path / 'arch.json')
    return tmp_path


def test_coco_a_detector_is_pruned_in_place_and_looked_at(folder):
    shutil.copytree(PICTURES / 'nuclei', folder / 'data/cells')
    in_place, _ = blocks('bash')
    said = run_block(folder, in_place)
    assert ' 0 error' in said
    assert '6 images, 71 objects; all are read' in said
    content = json.loads((folder / 'work_dirs/compared/detectors.json').read_text())
    assert {'dense', 'half'} <= set(re.findall(r'\w+', json.dumps(content)))
    assert (folder / 'work_dirs/compared/report.html').is_file()
    (look,) = blocks('python')
    python(folder, '-c', look)
    assert len(list((folder / 'painted/vis').glob('*'))) == 2


def test_class_folders_and_voc_a_pruned_classifier_becomes_a_detector(folder):
    shutil.copytree(PICTURES / 'sorted', folder / 'data/sorted')
    shutil.copytree(PICTURES / 'blood', folder / 'data/cells')
    _, code = blocks('bash')
    said = run_block(folder, code)
    assert said.count('3 classes: Platelets, RBC, WBC') == 2  # the classifier's, and the detector's
    assert said.count(' 0 error') == 1
    half = ArchSpec.from_json(folder / 'work_dirs/half-sorted/arch.json')
    assert f'in_channels={list(half.embed_dims)}' in (folder / 'small.py').read_text()
    cells = {part: json.loads((folder / f'small_{part}.json').read_text()) for part in ('train', 'val')}
    assert {part: len(content['annotations']) for part, content in cells.items()} == dict(train=88, val=37)
    assert len(list((folder / 'work_dirs/small').glob('*/painted/*'))) == 2


def test_masks(folder):
    choice = OwnConfig('detector', PICTURES / 'nuclei', str(folder / 'arch.json'), None, folder / 'own.py', 'mask-rcnn')
    data, cfg = choice.write()  # checks the masks as a training does
    assert (data.classes, data.size, data.most) == (('nucleus',), (128, 128), 21)
    assert cfg.val_evaluator.metric == ['bbox', 'segm']
