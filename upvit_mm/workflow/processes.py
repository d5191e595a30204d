"""Who works on a job: the processes that a launcher started, and how they meet."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from typing import Any

from torch import distributed

from upvit_mm.launch import first_machine, place_in_job
from upvit_mm.pruning.shared_work import Crew, Value

LAUNCHERS = ('none', 'pytorch', 'slurm')
PATIENCE = timedelta(days=365)  # a process that works answers when it is done; one that ended closes its connections


@dataclass(frozen=True)
class LaunchedCrew(Crew):
    """Processes of a launcher. They meet through a gloo group of their own, on GPU machines too.

    The group is joined at the first meeting. All processes must get there within half an hour of one another; from then
    on they wait for each other however long a batch takes, and end as soon as they notice that one of them has ended.

    Attributes:
        launcher: that started them.

    Raises:
        ConnectionError: the processes do not find each other, or one of them ended.
    """

    launcher: str = 'pytorch'

    def share(self, make: Callable[[], Value]) -> Value:
        if self.rank:
            return self._meet(partial(_receive, 0))
        value = make()
        for rank in range(1, self.size):
            self._meet(partial(_send, rank, value))
        return value

    def collect(self, value: Value) -> list[Value] | None:
        if self.rank:
            return self._meet(partial(_send, 0, value))
        return [value, *(self._meet(partial(_receive, rank)) for rank in range(1, self.size))]

    def leave(self) -> None:
        """Undo what the first meeting did; what goes on alone must not count as one of several processes."""
        group, ours = self.__dict__.pop('_joined', (None, False))
        if group is not None:
            distributed.destroy_process_group(None if ours else group)

    def _meet(self, act: Callable[[distributed.ProcessGroup], Any]) -> Any:
        group, _ = self._joined
        try:
            return act(group)
        except RuntimeError as error:
            raise ConnectionError(
                f'process {self.rank} of {self.size}: another one has ended or was killed; its own message says why. '
                f'What was scored is kept: start again to go on. ({_first_line(error)})'
            ) from error

    @cached_property
    def _joined(self) -> tuple[distributed.ProcessGroup, bool]:
        """The group, and whether the one of all processes, which it is part of, is ours too."""
        address, port = first_machine(self.launcher)
        ours = not distributed.is_initialized()
        try:
            if ours:
                os.environ.update(MASTER_ADDR=address, MASTER_PORT=port)
                distributed.init_process_group('gloo', rank=self.rank, world_size=self.size)
            return distributed.new_group(backend='gloo', timeout=PATIENCE), ours
        except RuntimeError as error:
            raise ConnectionError(
                f'process {self.rank} of {self.size}: does not find the others at {address}:{port}. All must be '
                'started, and the port be free; name the network in GLOO_SOCKET_IFNAME where a machine has several. '
                f'({_first_line(error)})'
            ) from error


def join_crew(launcher: str, device: str) -> tuple[Crew, str]:
    """This process's place in the job, and its device (a GPU of its own when ``device`` is ``'cuda'``).

    Raises:
        ValueError: an unknown launcher, or one that did not start this process.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher = {launcher!r}: must be one of {", ".join(LAUNCHERS)}.')
    if launcher == 'none':
        return Crew(), device
    rank, size, local = place_in_job(launcher)
    return LaunchedCrew(rank, size, launcher), f'cuda:{local}' if device == 'cuda' else device


# From one process to another, no collectives: a thread of gloo's that still holds a collective's tensors wants Python's
# lock to drop them, which `destroy_process_group` holds while it waits for that thread (seen with torch 2.4).


def _send(rank: int, value: Any, group: distributed.ProcessGroup) -> None:
    distributed.send_object_list([value], dst=rank, group=group)


def _receive(rank: int, group: distributed.ProcessGroup) -> Any:
    values = [None]
    distributed.recv_object_list(values, src=rank, group=group)
    return values[0]


def _first_line(error: Exception) -> str:
    return str(error).partition('\n')[0]
