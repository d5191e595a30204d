"""Token-representation consistency: how much of a dense network's tokens is left in a pruned one."""

from upvit_mm.consistency.compare import check_grids, check_plan, compare, contrast
from upvit_mm.consistency.images import ImageFiles, find_images, parse_size
from upvit_mm.consistency.metrics import LOWER_IS_BETTER, METRICS, StageMetrics
from upvit_mm.consistency.networks import Colours, Network, load_network
from upvit_mm.consistency.stages import common_stages, maps_of, paired_tokens
from upvit_mm.consistency.token_dropping import DeiTDropping, PVTv2Dropping, TokenDropping, drop_tokens

__all__ = [
    'LOWER_IS_BETTER',
    'METRICS',
    'Colours',
    'DeiTDropping',
    'ImageFiles',
    'Network',
    'PVTv2Dropping',
    'StageMetrics',
    'TokenDropping',
    'check_grids',
    'check_plan',
    'common_stages',
    'compare',
    'contrast',
    'drop_tokens',
    'find_images',
    'load_network',
    'maps_of',
    'paired_tokens',
    'parse_size',
]
