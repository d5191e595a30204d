"""The words that a report gives to be said again."""

from __future__ import annotations

import shlex

import pytest

from upvit_mm.launch import command_line, place_in_job

TORCHRUN = {'RANK': '1', 'WORLD_SIZE': '8', 'LOCAL_RANK': '1'}
SLURM = {'SLURM_PROCID': '0', 'SLURM_NTASKS': '16', 'SLURM_LOCALID': '0'}
SLURM |= {'SLURM_JOB_PARTITION': 'gpu', 'SLURM_JOB_NAME': 'up b0'}


@pytest.fixture
def said(monkeypatch):
    """``said(words, launcher, environment)``: what a tool that was started so records."""

    def say(words: str, launcher: str, environment: dict[str, str]) -> str:
        monkeypatch.setattr('sys.argv', shlex.split(words))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return command_line(launcher)

    return say


@pytest.mark.parametrize(
    ('words', 'launcher', 'environment', 'again'),
    [
        ('tools/prune.py c.py w.pth', 'none', {}, 'python tools/prune.py c.py w.pth'),
        (
            '/opt/upvit_mm/tools/compare.py c.py --launcher pytorch --work-dir "a b"',
            'pytorch',
            TORCHRUN,
            "tools/dist_compare.sh c.py 8 --work-dir 'a b'",
        ),
        (
            '/opt/upvit_mm/tools/compare.py c.py --work-dir out --launcher slurm --seeds 0',
            'slurm',
            SLURM,
            "GPUS=16 tools/slurm_compare.sh gpu 'up b0' c.py out --seeds 0",
        ),
        (
            'compare.py c.py --launcher pytorch',
            'pytorch',
            TORCHRUN | {'LOCAL_WORLD_SIZE': '4'},
            'NNODES=2 tools/dist_compare.sh c.py 4',
        ),
        (
            'compare.py c.py --work-dir out --launcher slurm',
            'slurm',
            SLURM | {'SLURM_NTASKS_PER_NODE': '4'},
            "GPUS=16 GPUS_PER_NODE=4 tools/slurm_compare.sh gpu 'up b0' c.py out",
        ),
        ('compare.py c.py --launcher=slurm', 'slurm', SLURM, 'python compare.py c.py --launcher=slurm'),  # by hand
        ('compare.py c.py --launcher mpi', 'mpi', {}, 'python compare.py c.py --launcher mpi'),
    ],
)
def test_command_line(said, words, launcher, environment, again):
    assert said(words, launcher, environment) == again


def test_place_in_job(monkeypatch):
    for name in (*TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"launcher = 'pytorch': RANK is not set; start with one of tools/dist_\*.sh"):
        place_in_job('pytorch')
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert place_in_job('pytorch') == (1, 8, 1)
