"""Losses that compare a student with its teacher."""

from upvit_mm.models.losses.distillation import DistillLoss, FeatureMSE, SoftTargetKL, TokenMSE

__all__ = ['DistillLoss', 'FeatureMSE', 'SoftTargetKL', 'TokenMSE']
