"""How parameters are grouped for the optimizer of a run of mmengine, registered under the scope ``upvit_mm``."""

from upvit_mm.optim.bfloat16 import Bfloat16OptimWrapper
from upvit_mm.optim.check import check_constructor
from upvit_mm.optim.decay import OptimWrapperConstructor, limit_decay, spared_of_decay
from upvit_mm.optim.layer_decay import LayerDecayOptimWrapperConstructor
from upvit_mm.optim.summary import summary, without_options

__all__ = [
    'Bfloat16OptimWrapper',
    'LayerDecayOptimWrapperConstructor',
    'OptimWrapperConstructor',
    'check_constructor',
    'limit_decay',
    'spared_of_decay',
    'summary',
    'without_options',
]
