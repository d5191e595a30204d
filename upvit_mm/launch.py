"""How this process was started: its place among others, and the words that start it again."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

VARIABLES = {  # number of this process, of all, and of this one on its machine
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
}


def place_in_job(launcher: str) -> tuple[int, int, int]:
    """Number of this process, how many there are, and its number on its machine, as the launcher says.

    Raises:
        ValueError: the launcher did not start this process.
    """
    missing = [name for name in VARIABLES[launcher] if not os.environ.get(name, '').isdigit()]
    if missing:
        kind = 'dist' if launcher == 'pytorch' else launcher
        raise ValueError(f'launcher = {launcher!r}: {missing[0]} is not set; start with one of tools/{kind}_*.sh.')
    rank, size, local = (int(os.environ[name]) for name in VARIABLES[launcher])
    return rank, size, local


def command_line(launcher: str = 'none') -> str:
    """The words that start this tool again; those of the script in ``tools/`` where one has started it.

    Args:
        launcher: that this process was told of.
    """
    tool, words = Path(sys.argv[0]).stem, sys.argv[1:]
    if launcher == 'pytorch' and words[1:3] == ['--launcher', launcher]:
        _, size, _ = place_in_job(launcher)
        here = int(os.environ.get('LOCAL_WORLD_SIZE', size))
        nodes = f'NNODES={size // here} ' if size > here else ''
        return nodes + shlex.join([f'tools/dist_{tool}.sh', words[0], str(here), *words[3:]])
    if launcher == 'slurm' and words[1:2] + words[3:5] == ['--work-dir', '--launcher', launcher]:
        _, size, _ = place_in_job(launcher)
        job = [os.environ.get(f'SLURM_JOB_{name}', name) for name in ('PARTITION', 'NAME')]
        per_node = os.environ.get('SLURM_NTASKS_PER_NODE')
        nodes = f'GPUS_PER_NODE={per_node} ' if per_node else ''
        return f'GPUS={size} {nodes}' + shlex.join([f'tools/slurm_{tool}.sh', *job, words[0], words[2], *words[5:]])
    return shlex.join(['python', *sys.argv])
