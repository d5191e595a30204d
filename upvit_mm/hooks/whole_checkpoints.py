"""Write checkpoints completely or not at all, even if the training is interrupted."""

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
    """mmengine's own backend for local files, except for writing."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file completely or not at all."""
        write_atomically(filepath, lambda part: part.write_bytes(obj))


@HOOKS.register_module()
class WholeCheckpoints(Hook):
    """Make ``CheckpointHook`` write atomically if it writes to a local disk.

    mmengine writes to the final name, so an interruption or a full disk leaves half a checkpoint that looks complete.
    """

    def before_run(self, runner: Runner) -> None:
        for hook in runner.hooks:
            own = isinstance(hook, CheckpointHook) and hook.backend_args is None and hook.file_client_args is None
            if own and '://' not in str(hook.out_dir):
                hook.backend_args = dict(backend=BACKEND)
