"""Hooks for the runs of mmengine, registered under the scope ``upvit_mm``."""

from upvit_mm.hooks.epoch_ema import EpochEMAHook
from upvit_mm.hooks.finite_loss import StopOnNonFiniteLoss

__all__ = ['EpochEMAHook', 'StopOnNonFiniteLoss']
