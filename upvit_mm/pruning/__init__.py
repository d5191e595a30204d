"""Pruning, in pure torch: which widths there are, how important each channel is, and how to slice."""

from upvit_mm.pruning.dims import KINDS, PrunableDim, fixed_axes, prunable_dims
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.plan import PrunePlan, make_plan
from upvit_mm.pruning.planner import HEAD_POLICIES, plan_for_target
from upvit_mm.pruning.slicer import slice_state

__all__ = [
    'HEAD_POLICIES',
    'KINDS',
    'PrunableDim',
    'PrunePlan',
    'fixed_axes',
    'gates',
    'make_plan',
    'plan_for_target',
    'prunable_dims',
    'slice_state',
]
