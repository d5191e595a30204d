"""Validate what a training goes on from, where the loop would have done so next."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class JudgeResumed(Hook):
    """Repeats the validation that follows a checkpoint, when a training resumes from it.

    mmengine saves first and validates after it. A run that is killed between the two never learns how good that
    checkpoint is: the last validation may be missing, and the best checkpoint forgotten.
    """

    priority = 'LOWEST'  # after CheckpointHook knows where the best one is

    def before_train(self, runner: Runner) -> None:
        if runner._resume and runner.val_loop is not None and is_judged(runner):
            runner.val_loop.run()


def is_judged(runner: Runner, extra: int = 0) -> bool:
    """Whether mmengine's loop validates after the epochs (or iterations) that are done and ``extra`` more."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        done, last = loop.epoch + extra, loop.max_epochs
    elif isinstance(loop, IterBasedTrainLoop):
        done, last = loop.iter + extra, loop.max_iters
    else:  # a loop of the user's own
        return False
    loop._decide_current_val_interval()  # it may change in the course of a training
    return done > 0 and loop.val_begin <= done and (done % loop.val_interval == 0 or done == last)
