"""Checkpoints of a training that are whole or not there, whatever ends it."""

from __future__ import annotations

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from upvit_mm.files import write_atomically
from upvit_mm.registry import HOOKS

BACKEND = 'upvit_mm.atomic'


@register_backend(BACKEND)
class AtomicBackend(LocalBackend):
    """Files on disk as mmengine's own backend has them, but for writing."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file that is whole or not there."""
        write_atomically(filepath, lambda part: part.write_bytes(obj))


@HOOKS.register_module()
class WholeCheckpoints(Hook):
    """Makes ``CheckpointHook`` write atomically where it would write to disk.

    mmengine writes under the final name, so a kill or a full disk leaves half a checkpoint that looks like one.
    """

    def before_run(self, runner: Runner) -> None:
        for hook in runner.hooks:
            own = isinstance(hook, CheckpointHook) and hook.backend_args is None and hook.file_client_args is None
            if own and '://' not in str(hook.out_dir):
                hook.backend_args = dict(backend=BACKEND)
