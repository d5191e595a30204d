"""Averaged weights that are updated once an epoch, as the authors have it."""

from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class EpochEMAHook(EMAHook):
    """mmengine's ``EMAHook`` with one update at the end of every epoch, starting from the weights before training.

    In update n = 1, 2, ... the average moves by ``max(momentum, gamma / (gamma + n))`` of its distance to the weights;
    the authors' share is ``max(0.001, 9 / (10 + n))`` (``utils/ema_util.py``, called from ``main_distill.py``).

    Note:
        Averaging every step (``EMAHook``) is what an EMA is meant for; this one is there to follow the authors.
        ``EMAHook(interval=steps_per_epoch)`` is no substitute: it updates one step into the next epoch and so never
        sees the last one.

    Args:
        momentum: smallest share, in (0, 1).
        gamma: how slowly the share falls.
        **settings: those of ``EMAHook``, for example ``begin_epoch``.
    """

    def __init__(self, momentum: float = 0.001, gamma: int = 9, **settings):
        super().__init__('MomentumAnnealingEMA', momentum=momentum, gamma=gamma, **settings)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if self.ema_model.steps == 0:  # not resumed: the first update copies, and the copy is to be the start
            self.ema_model.update_parameters(self.src_model)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Nothing; the parent updates here."""

    def after_train_epoch(self, runner: Runner) -> None:
        super().after_train_iter(runner, batch_idx=0)
