"""Validate the checkpoint that a training resumes from, if the loop would have validated it next."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class JudgeResumed(Hook):
    """Repeat the validation after a checkpoint when a training resumes from it.

    mmengine saves first and then validates. If a run is killed between the two, the result of that checkpoint is
    missing, and the best checkpoint may be lost.
    """

    priority = 'LOWEST'  # after CheckpointHook knows the best one

    def before_train(self, runner: Runner) -> None:
        if runner._resume and runner.val_loop is not None and is_judged(runner):
            runner.val_loop.run()


def is_judged(runner: Runner, extra: int = 0) -> bool:
    """Whether mmengine's loop validates after the finished epochs (or iterations) and ``extra`` more."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        done, last = loop.epoch + extra, loop.max_epochs
    elif isinstance(loop, IterBasedTrainLoop):
        done, last = loop.iter + extra, loop.max_iters
    else:  # the user's own loop
        return False
    loop._decide_current_val_interval()  # it may change during a training
    return done > 0 and loop.val_begin <= done and (done % loop.val_interval == 0 or done == last)
