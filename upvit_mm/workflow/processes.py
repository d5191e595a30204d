"""Who works on a job: the processes that a launcher started."""

from __future__ import annotations

import os

from upvit_mm.pruning.scoring import Crew

LAUNCHERS = ('none', 'pytorch', 'slurm')
VARIABLES = {  # number of this process, of all, and of this one on its machine
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
}


def join_crew(launcher: str, device: str) -> tuple[Crew, str]:
    """This process's place in the job, and its device (a GPU of its own when ``device`` is ``'cuda'``).

    Processes agree through files in the work dir alone, so no process group is started.

    Raises:
        ValueError: an unknown launcher, or one that did not start this process.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher = {launcher!r}: must be one of {", ".join(LAUNCHERS)}.')
    if launcher == 'none':
        return Crew(), device
    missing = [name for name in VARIABLES[launcher] if not os.environ.get(name, '').isdigit()]
    if missing:
        raise ValueError(
            f'launcher = {launcher!r}: {missing[0]} is not set; start with tools/dist_prune.sh or tools/slurm_prune.sh.'
        )
    rank, size, local = (int(os.environ[name]) for name in VARIABLES[launcher])
    return Crew(rank, size), f'cuda:{local}' if device == 'cuda' else device
