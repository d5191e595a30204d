"""Refuse to resume from a checkpoint that does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor

from upvit_mm.checkpoints.keys import differences
from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class CheckResumed(Hook):
    """Compares weights and averaged weights of a resumed checkpoint with those of the run, before they are loaded.

    mmengine only logs tensors that are missing, extra or mis-shaped, and goes on with random ones. A checkpoint that is
    loaded without resuming (``load_from``) is none of its business.

    Raises:
        ValueError: the file, the first names and what to do.
    """

    priority = 'VERY_HIGH'  # before EMAHook exchanges weights and averages

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
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


def _refuse(runner: Runner, reason: str) -> None:
    path = runner._load_from or find_latest_checkpoint(runner.work_dir)
    raise ValueError(
        f'checkpoint {str(path)!r} cannot be resumed: {reason}. Resume with the config of that run, or start a new '
        'run from its weights: load_from without resume, in another work dir.'
    )
