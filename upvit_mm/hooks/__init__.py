"""Hooks for runs of mmengine, registered in the scope ``upvit_mm``."""

from upvit_mm.hooks.compile_backbone import CompileBackbone
from upvit_mm.hooks.epoch_ema import EpochEMAHook, ImageEMAHook
from upvit_mm.hooks.epoch_table import EpochTable
from upvit_mm.hooks.finite_loss import StopOnNonFiniteLoss
from upvit_mm.hooks.float32_outputs import Float32Outputs
from upvit_mm.hooks.follow_dense import FollowDense
from upvit_mm.hooks.judge_resumed import JudgeResumed
from upvit_mm.hooks.load_check import CheckLoaded
from upvit_mm.hooks.record_arch import RecordArch
from upvit_mm.hooks.resume_check import CheckResumed
from upvit_mm.hooks.seed_epochs import SeedEveryEpoch
from upvit_mm.hooks.token_consistency import TokenConsistencyHook
from upvit_mm.hooks.whole_checkpoints import WholeCheckpoints

__all__ = [
    'CheckLoaded',
    'CheckResumed',
    'CompileBackbone',
    'EpochEMAHook',
    'EpochTable',
    'Float32Outputs',
    'FollowDense',
    'ImageEMAHook',
    'JudgeResumed',
    'RecordArch',
    'SeedEveryEpoch',
    'StopOnNonFiniteLoss',
    'TokenConsistencyHook',
    'WholeCheckpoints',
]
