"""Measures of token consistency: are a pruned network's tokens still those of the dense one, stage by stage?"""

from upvit_mm.consistency.measure import check_grids, check_plan, compare, contrast
from upvit_mm.consistency.metrics import LOWER_IS_BETTER, METRICS, StageMetrics
from upvit_mm.consistency.stages import common_stages, paired_tokens

__all__ = [
    'LOWER_IS_BETTER',
    'METRICS',
    'StageMetrics',
    'check_grids',
    'check_plan',
    'common_stages',
    'compare',
    'contrast',
    'paired_tokens',
]
