"""Several processes score one network: how they meet, what they give, and what becomes of them when one dies."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures.jobs import SMALL, free_port

from upvit_mm.workflow.processes import join_crew

ROOT = Path(__file__).parents[2]
WORDS = ['--widths', 'mlp_hidden_dims=8', 'depths=[1,1,1,1]', '--method', 'hybrid', '--per-class', '4']
WORDS += ['--batch-size', '9', '--draws', '1', '--near-share', '0.1', '--eval-images', '10']
LAUNCHED = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


@pytest.fixture
def cfg(cfg, shrink, monkeypatch):
    monkeypatch.setitem(SMALL, 'pvtv2', SMALL['pvtv2'] | {'depths': [1, 1, 2, 1]})  # a block can go
    return shrink(cfg)


def scores(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / 'scores.pt', weights_only=True)['scores']


@pytest.mark.parametrize('family', ['pvtv2'])
def test_two_processes_give_the_scores_of_one(prune_tool, run, launch, start, ended, identical, tmp_path, checkpoint):
    """As torchrun starts them in one work dir, and each with a disk of its own."""
    run(prune_tool(*WORDS, '--work-dir', 'one'))
    launched = ['dist_prune.sh', 'dense.py', checkpoint, '2', *WORDS, '--work-dir', 'two']
    launch(*launched)
    words = prune_tool(*WORDS, '--launcher', 'pytorch', '--work-dir', 'apart')
    words[2] = str(tmp_path / words[2])
    assert [status for status, _ in ended(start(2, words))] == [0, 0]
    for folder in ('two', '0/apart'):
        assert identical(scores(tmp_path / 'one'), scores(tmp_path / folder))
        assert (tmp_path / 'one/blocks.json').read_bytes() == (tmp_path / folder / 'blocks.json').read_bytes()
        assert (tmp_path / folder / 'report.md').is_file()
    for folder in ('one', 'two', '0/apart', '1/apart'):
        assert not (tmp_path / folder / 'partial').exists()
    assert list((tmp_path / '1/apart').iterdir()) == []
    output = launch(*launched)  # done before: nobody waits for anybody
    assert 'two/scores.pt: scored before from the same inputs' in output


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_job_that_lost_a_process_goes_on_with_another_number(prune_tool, run, start, ended, identical, tmp_path):
    words = ['--widths', 'mlp_hidden_dims=8', '--method', 'exact', '--per-class', '8', '--batch-size', '2']
    words += ['--eval-images', '0', '--max-rows', '16']
    run(prune_tool(*words, '--work-dir', 'calm'))
    command = prune_tool(*words, '--launcher', 'pytorch', '--work-dir', tmp_path / 'stormy')
    command[2] = str(tmp_path / command[2])
    first, second = start(2, command)
    while not list((tmp_path / 'stormy').rglob('batch_000001.pt')):
        assert second.is_alive()
        time.sleep(0.02)
    second.kill()
    (status, said), _ = ended([first, second])
    assert status == 1
    assert 'error: process 0 of 2: another one has ended or was killed; its own message says why.' in said
    assert 'Traceback' not in said
    assert not (tmp_path / 'stormy/scores.pt').exists()
    parts = {path.name: path.read_bytes() for path in (tmp_path / 'stormy/partial').rglob('batch_??????.pt')}
    assert {'batch_000000.pt', 'batch_000001.pt'} <= set(parts)
    run(prune_tool(*words, '--work-dir', 'stormy'))
    for name in ('scores.pt', 'plan.json', 'arch.json', 'proxy.txt'):
        assert (tmp_path / 'calm' / name).read_bytes() == (tmp_path / 'stormy' / name).read_bytes(), name
    calm, stormy = (json.loads((tmp_path / name / 'report.json').read_text()) for name in ('calm', 'stormy'))
    assert calm.pop('command') != stormy.pop('command')  # they name their folders
    assert calm == stormy


DEATH = """
import os, signal
from mmengine.dist import is_distributed
from upvit_mm.cli import one_line_errors
from upvit_mm.runner import leave_processes
from upvit_mm.workflow.processes import join_crew

crew, _ = join_crew({launcher!r}, 'cpu')
with one_line_errors():
    try:
        print(crew.share(lambda: 'all are here'), flush=True)
        print(crew.collect(crew.rank ** 2), flush=True)
        if crew.rank == {dies}:
            os.kill(os.getpid(), signal.SIGKILL)
        crew.collect('work')
        crew.share(lambda: 'all is saved')
        crew.leave()
        print('alone:', not is_distributed(), flush=True)
    finally:
        leave_processes()
"""


@pytest.mark.parametrize('dies', [0, 1])
def test_all_end_when_one_dies(start, ended, dies):
    code = DEATH.format(launcher='pytorch', dies=dies)
    results = ended(start(3, [sys.executable, '-c', code]))
    assert [status for status, _ in results] == [-9 if rank == dies else 1 for rank in range(3)]
    for rank, (_, said) in enumerate(results):
        assert 'all are here\n' in said
        assert ('[0, 1, 4]' in said) == (rank == 0)
        lines = [line for line in said.splitlines() if line.startswith('error: ')]
        assert len(lines) == (rank != dies)
        assert all(f'process {rank} of 3: another one has ended or was killed' in line for line in lines)
        assert 'Traceback' not in said


def test_slurm_says_where_to_meet(start, ended, tmp_path, environment):
    program = tmp_path / 'bin/scontrol'
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[1-2]" ] && printf "127.0.0.1\\nnode2\\n"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    slurm = {'SLURM_NTASKS': '2', 'SLURM_NODELIST': 'node[1-2]', 'MASTER_ADDR': ''}
    path = f'{program.parent}{os.pathsep}{environment["PATH"]}'
    results = ended(start(2, [sys.executable, '-c', DEATH.format(launcher='slurm', dies=9)], **slurm, PATH=path))
    assert [status for status, _ in results] == [0, 0]
    assert '[0, 1]' in results[0][1]
    assert all('alone: True' in said for _, said in results)


def test_a_process_that_works_is_never_given_up(run_forked):
    """However long a batch takes; the first one that does not come at all is another matter."""
    code = f"""
import torch
from upvit_mm.workflow.processes import LaunchedCrew
import os
os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT='{free_port()}')
group, ours = LaunchedCrew(0, 1)._joined
print('limits', torch.distributed.get_backend(group), group._get_backend(torch.device('cpu')).options._timeout.days,
      torch.distributed.group.WORLD._get_backend(torch.device('cpu')).options._timeout.seconds)
"""
    assert run_forked(code).splitlines()[-1] == 'limits gloo 365 1800'


def test_join_crew(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert join_crew('none', 'cuda')[1] == 'cuda'
    with pytest.raises(ValueError, match=r"launcher = 'pytorch': RANK is not set; start with one of tools/dist_"):
        join_crew('pytorch', 'cpu')
    with pytest.raises(ValueError, match="launcher = 'mpi'"):
        join_crew('mpi', 'cpu')
    for name, value in {'SLURM_PROCID': '5', 'SLURM_NTASKS': '16', 'SLURM_LOCALID': '1'}.items():
        monkeypatch.setenv(name, value)
    crew, device = join_crew('slurm', 'cuda')
    assert (crew.rank, crew.size, device) == (5, 16, 'cuda:1')
    assert join_crew('slurm', 'cpu')[1] == 'cpu'


def test_where_nothing_says_where_to_meet(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in {'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0'}.items():
        monkeypatch.setenv(name, value)
    crew, _ = join_crew('pytorch', 'cpu')
    with pytest.raises(ValueError, match=r"launcher = 'pytorch': MASTER_ADDR is not set; set it, or start with"):
        crew.share(lambda: 1)


ON_GPUS = """
import torch
from torch import distributed
from upvit_mm.runner import leave_processes
from upvit_mm.workflow.processes import join_crew

crew, device = join_crew('pytorch', 'cuda')
torch.cuda.set_device(device)
distributed.init_process_group('nccl')
try:
    total = torch.ones(3, device=device)
    distributed.all_reduce(total)
    print('nccl', total.tolist(), crew.gather(crew.rank), flush=True)
    crew.leave()
finally:
    leave_processes()
"""


@pytest.mark.gpu
@pytest.mark.parametrize('size', [1, 2])
def test_a_crew_meets_beside_nccl(start, ended, environment, size):
    """One process and two; gradients of a training go through NCCL, sums of scores through gloo."""
    if torch.cuda.device_count() < size:
        pytest.skip(f'needs {size} CUDA devices')
    environment.pop('CUDA_VISIBLE_DEVICES')
    results = ended(start(size, [sys.executable, '-c', ON_GPUS]))
    assert [status for status, _ in results] == [0] * size, results
    for _, said in results:
        assert f'nccl {[float(size)] * 3} {list(range(size))}' in said


@pytest.mark.gpu
@pytest.mark.parametrize('family', ['pvtv2'])
def test_scores_of_gpus(prune_tool, run, environment, tmp_path, checkpoint):
    """One GPU, and two if there are two, give the scores of a CPU."""
    words = ['exact' if word == 'hybrid' else word for word in WORDS]  # it draws nothing
    run(prune_tool(*words, '--device', 'cpu', '--work-dir', 'cpu'))
    environment.pop('CUDA_VISIBLE_DEVICES')
    run(prune_tool(*words, '--device', 'cuda', '--work-dir', '1'))
    folders = ['1']
    if torch.cuda.device_count() > 1:
        command = [str(ROOT / 'tools/dist_prune.sh'), 'dense.py', checkpoint, '2', *words, '--work-dir', '2']
        run(['env', f'PORT={free_port()}', *command])
        folders.append('2')
    expected = scores(tmp_path / 'cpu')
    for folder in folders:
        found = scores(tmp_path / folder)
        assert all(torch.allclose(found[n], expected[n], rtol=1e-2, atol=1e-9) for n in expected)
