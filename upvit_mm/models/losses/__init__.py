"""Losses that compare a student with its teacher."""

from upvit_mm.models.losses.distillation import DistillLoss, FeatureMSE, SoftTargetKL, TokenMSE
from upvit_mm.models.losses.map_distance import map_distance

__all__ = ['DistillLoss', 'FeatureMSE', 'SoftTargetKL', 'TokenMSE', 'map_distance']
