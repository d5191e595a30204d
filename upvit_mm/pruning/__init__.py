"""Pruning, in pure torch: which widths there are, how much each channel matters, and slicing what is not kept."""

from upvit_mm.pruning.dims import KINDS, PrunableDim, fixed_axes, prunable_dims
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.plan import PrunePlan, make_plan
from upvit_mm.pruning.slicer import slice_state

__all__ = ['KINDS', 'PrunableDim', 'PrunePlan', 'fixed_axes', 'gates', 'make_plan', 'prunable_dims', 'slice_state']
