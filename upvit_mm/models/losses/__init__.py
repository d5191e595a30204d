"""What a student learns from its teacher, as losses."""

from upvit_mm.models.losses.distillation import DistillLoss, FeatureMSE, SoftTargetKL, TokenMSE

__all__ = ['DistillLoss', 'FeatureMSE', 'SoftTargetKL', 'TokenMSE']
