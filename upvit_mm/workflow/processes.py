"""The processes of a launcher that share a job, and how they communicate."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from typing import Any

from torch import distributed

from upvit_mm.launch import VARIABLES, first_machine, place_in_job
from upvit_mm.pruning.crew import Crew, Value

PATIENCE = timedelta(days=365)  # a working process answers when it is done; one that ended closes its connections


@dataclass(frozen=True)
class LaunchedCrew(Crew):
    """Processes of a launcher. They communicate through their own gloo group, on GPU machines too.

    The group is made at the first communication. All processes must reach it within half an hour of one another. After
    that they wait for each other however long a batch takes, and end when they notice that one of them has ended.

    Attributes:
        launcher: the launcher that started them.

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
        """Leave the group; a process that continues alone must not count as one of several."""
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
                f'What was scored is kept: start again to continue. ({_first_line(error)})'
            ) from error

    @cached_property
    def _joined(self) -> tuple[distributed.ProcessGroup, bool]:
        """The group, and whether we also made the group of all processes that it belongs to."""
        address, port = first_machine(self.launcher)
        ours = not distributed.is_initialized()
        try:
            if ours:
                os.environ.update(MASTER_ADDR=address, MASTER_PORT=port)
                distributed.init_process_group('gloo', rank=self.rank, world_size=self.size)
            return distributed.new_group(backend='gloo', timeout=PATIENCE), ours
        except RuntimeError as error:
            raise ConnectionError(
                f'process {self.rank} of {self.size}: cannot find the others at {address}:{port}. All must be '
                'started, and the port free; if a machine has several networks, set GLOO_SOCKET_IFNAME. '
                f'({_first_line(error)})'
            ) from error


def join_crew(launcher: str, device: str) -> tuple[Crew, str]:
    """This process's place in the job, and its device (its own GPU when ``device`` is ``'cuda'``).

    Raises:
        ValueError: an unknown launcher, or one that did not start this process.
    """
    if launcher not in VARIABLES and launcher != 'none':
        raise ValueError(f'launcher = {launcher!r}: must be one of none, {", ".join(VARIABLES)}.')
    if launcher == 'none':
        return Crew(), device
    rank, size, local = place_in_job(launcher)
    return LaunchedCrew(rank, size, launcher), f'cuda:{local}' if device == 'cuda' else device


# Send and receive, no collectives. A gloo thread that still holds the tensors of a collective needs Python's lock to
# free them; `destroy_process_group` holds that lock while it waits for the thread (seen with torch 2.4).


def _send(rank: int, value: Any, group: distributed.ProcessGroup) -> None:
    distributed.send_object_list([value], dst=rank, group=group)


def _receive(rank: int, group: distributed.ProcessGroup) -> Any:
    values = [None]
    distributed.recv_object_list(values, src=rank, group=group)
    return values[0]


def _first_line(error: Exception) -> str:
    return str(error).partition('\n')[0]
