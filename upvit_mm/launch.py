"""How this process was started: its number among all processes, and the command line."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

VARIABLES = {  # rank of this process, number of processes, and rank on its machine
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
}


def place_in_job(launcher: str) -> tuple[int, int, int]:
    """Rank of this process, number of processes, and rank on its machine, from the launcher's variables.

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
    """Address and port through which the processes of a job connect, from ``MASTER_ADDR`` and ``MASTER_PORT`` or slurm.

    Raises:
        ValueError: neither is set.
    """
    address, port = (os.environ.get(name) for name in ('MASTER_ADDR', 'MASTER_PORT'))
    if launcher == 'slurm':
        nodes = os.environ.get('SLURM_NODELIST') or os.environ.get('SLURM_JOB_NODELIST')
        if not address and nodes:
            address = next(iter(_output_of('scontrol', 'show', 'hostnames', nodes).split()), None)
        port = port or '29500'  # also mmengine's default
    for name, value in (('MASTER_ADDR', address), ('MASTER_PORT', port)):
        if not value:
            kind = 'dist' if launcher == 'pytorch' else launcher
            raise ValueError(f'launcher = {launcher!r}: {name} is not set; set it, or start with tools/{kind}_*.sh.')
    return address, port


def _output_of(*command: str) -> str:
    """The output of a program; empty if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ''


def command_line() -> str:
    """The command line of the script in ``tools/`` that started this process, or of the tool itself."""
    tool, *words = sys.argv
    start = [tool] if tool.startswith('upvit-mm ') else ['python', shlex.quote(tool)]  # see upvit_mm/__main__.py
    return os.environ.get('UPVIT_MM_COMMAND') or ' '.join([*start, *map(shlex.quote, words)])
