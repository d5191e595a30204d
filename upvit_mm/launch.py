"""How this process was started: its place among others, and the words that start it again."""

from __future__ import annotations

import os
import shlex
import subprocess
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


def first_machine(launcher: str) -> tuple[str, str]:
    """Address and port at which the processes of a job meet, as ``MASTER_ADDR`` and ``MASTER_PORT`` or slurm say.

    Raises:
        ValueError: nothing says so.
    """
    address, port = (os.environ.get(name) for name in ('MASTER_ADDR', 'MASTER_PORT'))
    if launcher == 'slurm':
        nodes = os.environ.get('SLURM_NODELIST') or os.environ.get('SLURM_JOB_NODELIST')
        if not address and nodes:
            address = next(iter(_output_of('scontrol', 'show', 'hostnames', nodes).split()), None)
        port = port or '29500'  # mmengine's, too
    for name, value in (('MASTER_ADDR', address), ('MASTER_PORT', port)):
        if not value:
            kind = 'dist' if launcher == 'pytorch' else launcher
            raise ValueError(f'launcher = {launcher!r}: {name} is not set; set it, or start with tools/{kind}_*.sh.')
    return address, port


def _output_of(*command: str) -> str:
    """What a program prints; nothing where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ''


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
