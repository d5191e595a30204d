"""Refuse to start from a checkpoint that is damaged or does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor

from upvit_mm.checkpoints.keys import differences
from upvit_mm.files import check_records, write_text_atomically
from upvit_mm.hooks.unwrapped import model_of
from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class CheckResumed(Hook):
    """Compare weights and averaged weights of a resumed checkpoint with those of the run, before they are loaded.

    mmengine only logs tensors that are missing, extra or of another shape, and continues with random ones. A file that
    is loaded without resuming (``load_from``) must only be undamaged here; ``CheckLoaded`` checks its tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or does not fit; the message has the problem and what to do.
    """

    priority = 'VERY_HIGH'  # before EMAHook swaps weights and averages

    def before_run(self, runner: Runner) -> None:
        if runner._resume and not runner._load_from:
            _mend_pointer(Path(runner.work_dir))
        source = str(source_of(runner) or '')
        if not source or '://' in source:
            return
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'checkpoint {source!r} does not exist; give the one to start from.')
        try:
            check_records(path)
        except ValueError as error:
            raise ValueError(
                f'checkpoint {source!r} is corrupt or no checkpoint: {error}. Give another one to start from.'
            ) from error

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        model = model_of(runner)
        averages = [hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model')]
        weights = {k.removeprefix('module.'): v for k, v in checkpoint.get('state_dict', {}).items()}
        _compare(runner, 'state_dict', weights, model.state_dict())
        if averages:
            _compare(runner, 'ema_state_dict', checkpoint.get('ema_state_dict', {}), averages[0].state_dict())
        elif 'ema_state_dict' in checkpoint:  # its state_dict holds the averages
            _refuse(runner, 'it holds averaged weights, and no EMAHook is set')


def _compare(runner: Runner, part: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if not state:
        _refuse(runner, f'it has no {part}')
    if problems := differences(state, expected):
        first = f'{"; ".join(problems[:5])}{"; ..." if len(problems) > 5 else ""}'
        _refuse(runner, f'{len(problems)} of {len(expected)} tensors of its {part} differ: {first}')


def source_of(runner: Runner) -> str | None:
    """The checkpoint that the run starts from."""
    return runner._load_from or (find_latest_checkpoint(runner.work_dir) if runner._resume else None)


def _mend_pointer(folder: Path) -> None:
    """Write the newest checkpoint to mmengine's ``last_checkpoint`` if an interruption or a full disk left it empty."""
    pointer = folder / 'last_checkpoint'
    if is_main_process() and pointer.is_file() and not pointer.read_text(encoding='utf-8').strip():
        newest = max(folder.glob('*.pth'), key=lambda path: path.stat().st_mtime, default=None)
        pointer.unlink() if newest is None else write_text_atomically(pointer, str(newest))
    barrier()


def _refuse(runner: Runner, reason: str) -> None:
    path = source_of(runner)
    raise ValueError(
        f'checkpoint {str(path)!r} cannot be resumed: {reason}. Resume with the config of that run, or start a new '
        'run from its weights: load_from without resume, in another work dir.'
    )
