"""Averaged weights over a window that does not depend on the batch size: counted in images, or in epochs."""

import math

from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class ImageEMAHook(EMAHook):
    """mmengine's ``EMAHook`` with a window that is a fixed number of images, for any batch size.

    ``EMAHook`` moves the average in every step, so half the batch size halves its window. Here ``momentum`` is for
    steps of the config's ``auto_scale_lr.base_batch_size`` images. A step of ``r`` times as many images moves the
    average by ``1 - (1 - momentum) ** r`` of its distance to the weights. This holds with and without
    ``--auto-scale-lr``, because the schedule counts epochs in both cases.

    Args:
        momentum: share at the base batch size, in (0, 1). The window is about ``base_batch_size / momentum`` images.
        **settings: those of ``EMAHook``, without ``ema_type``.

    Raises:
        ValueError: at the start of a training, if the config has no ``auto_scale_lr.base_batch_size``.
    """

    def __init__(self, momentum: float = 1e-4, **settings):
        super().__init__('ExponentialMovingAverage', momentum=momentum, **settings)
        self.momentum = momentum

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        base = (runner.cfg.get('auto_scale_lr') or {}).get('base_batch_size')
        if not base:
            raise ValueError(
                f'custom_hooks: ImageEMAHook has momentum = {self.momentum} for steps of '
                'auto_scale_lr.base_batch_size images, which the config does not have; set it.'
            )
        images = runner.train_dataloader.batch_sampler.batch_size * runner.world_size
        momentum = -math.expm1(images / base * math.log1p(-self.momentum))  # 1 - (1 - m) ** r, without loss by rounding
        self.ema_model.momentum = momentum
        print_log(f'averaged weights: momentum {momentum:.3g} for steps of {images} images', logger='current')


@HOOKS.register_module()
class EpochEMAHook(EMAHook):
    """mmengine's ``EMAHook`` with one update at the end of every epoch, starting from the weights before training.

    In update n = 1, 2, ... the average moves by ``max(momentum, gamma / (gamma + n))`` of its distance to the weights;
    the authors' share is ``max(0.001, 9 / (10 + n))`` (``utils/ema_util.py``, called from ``main_distill.py``).

    Note:
        The usual EMA averages in every step (``EMAHook``); this hook follows the authors' code.
        ``EMAHook(interval=steps_per_epoch)`` cannot replace it: it updates one step into the next epoch and so misses
        the last epoch.

    Args:
        momentum: smallest share, in (0, 1).
        gamma: a larger value makes the share fall more slowly.
        **settings: those of ``EMAHook``, for example ``begin_epoch``.
    """

    def __init__(self, momentum: float = 0.001, gamma: int = 9, **settings):
        super().__init__('MomentumAnnealingEMA', momentum=momentum, gamma=gamma, **settings)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if self.ema_model.steps == 0:  # not resumed: the first update copies, and that copy must be the start
            self.ema_model.update_parameters(self.src_model)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Do nothing; the parent would update here."""

    def after_train_epoch(self, runner: Runner) -> None:
        super().after_train_iter(runner, batch_idx=0)
