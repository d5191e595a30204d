"""Who works on a job: the processes that a launcher started."""

from __future__ import annotations

from upvit_mm.launch import place_in_job
from upvit_mm.pruning.scoring import Crew

LAUNCHERS = ('none', 'pytorch', 'slurm')


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
    rank, size, local = place_in_job(launcher)
    return Crew(rank, size), f'cuda:{local}' if device == 'cuda' else device
