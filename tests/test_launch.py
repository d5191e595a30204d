"""The place of a process in its job, and the command that a report gives."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from upvit_mm.launch import command_line, place_in_job

ROOT = Path(__file__).parents[1]
TORCHRUN = {'RANK': '1', 'WORLD_SIZE': '8', 'LOCAL_RANK': '1'}
SLURM = {'SLURM_PROCID': '0', 'SLURM_NTASKS': '16', 'SLURM_LOCALID': '0'}


def test_command_line(monkeypatch):
    monkeypatch.delenv('UPVIT_MM_COMMAND', raising=False)
    monkeypatch.setattr('sys.argv', ['tools/prune.py', 'c.py', 'a b.pth'])
    assert command_line() == "python tools/prune.py c.py 'a b.pth'"
    monkeypatch.setattr('sys.argv', ['upvit-mm prune', 'c.py', 'a b.pth'])
    assert command_line() == "upvit-mm prune c.py 'a b.pth'"
    monkeypatch.setenv('UPVIT_MM_COMMAND', 'tools/dist_prune.sh c.py w.pth 8')
    assert command_line() == 'tools/dist_prune.sh c.py w.pth 8'


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({}, '{script} c.py 2 --work-dir a\\ b'),
        ({'NNODES': '2', 'GPUS': '', 'PORT': '1'}, 'NNODES=2 {script} c.py 2 --work-dir a\\ b'),
        ({'GPUS': '16', 'GPUS_PER_NODE': '4'}, 'GPUS=16 GPUS_PER_NODE=4 {script} c.py 2 --work-dir a\\ b'),
    ],
)
def test_scripts_pass_on_the_command_as_it_was_given(given, said, tmp_path):
    script = tmp_path / 'dist_it.sh'
    script.write_text(f'set -euo pipefail\n. {ROOT / "tools/launchers.sh"}\necho "$UPVIT_MM_COMMAND"\n')
    environment = {name: value for name, value in os.environ.items() if name not in ('NNODES', 'GPUS', 'GPUS_PER_NODE')}
    words = ['bash', str(script), 'c.py', '2', '--work-dir', 'a b']
    done = subprocess.run(words, env=environment | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said.format(script=script)


def test_place_in_job(monkeypatch):
    for name in (*TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"launcher = 'pytorch': RANK is not set; start with one of tools/dist_\*.sh"):
        place_in_job('pytorch')
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert place_in_job('pytorch') == (1, 8, 1)
