"""Weight decay of our backbones: it acts on their matrices and kernels, whatever a config says of the rest.

Norms, biases, position embeddings and class tokens are never pulled to zero, as in timm's recipes. The rule acts on the
groups of a built optimizer, so it holds for every constructor and every ``paramwise_cfg``.
"""

from __future__ import annotations

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from torch import nn
from torch.optim import Optimizer

from upvit_mm.models.backbones.base import UPBackbone
from upvit_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


def spared_of_decay(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of our backbones in a model that never decay: all that are no ``weight`` of two or more axes."""
    backbones = [module for module in model.modules() if isinstance(module, UPBackbone)]
    named = [pair for backbone in backbones for pair in backbone.named_parameters()]
    return [value for name, value in named if name.rpartition('.')[2] != 'weight' or value.ndim < 2]


def limit_decay(wrapper: OptimWrapper | OptimWrapperDict, model: nn.Module) -> OptimWrapper | OptimWrapperDict:
    """Set weight decay to 0 for ``spared_of_decay(model)`` in the groups of a built optimizer.

    A group of which only a part is spared is split in two; all other settings stay. Doing it twice changes nothing.

    Args:
        wrapper: changed in place, before schedulers are built for it: they count its groups.
        model: the model, also inside a wrapper such as ``MMDistributedDataParallel``.

    Returns:
        ``wrapper``.
    """
    spared = {id(parameter) for parameter in spared_of_decay(model)}
    wrappers = wrapper.optim_wrappers.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    for one in wrappers:
        _limit(one.optimizer, spared)
    return wrapper


def _limit(optimizer: Optimizer, spared: set[int]) -> None:
    for group in list(optimizer.param_groups):
        free = [parameter for parameter in group['params'] if id(parameter) in spared]
        if not free or not group.get('weight_decay'):
            continue
        if len(free) == len(group['params']):
            group['weight_decay'] = 0.0
            continue
        group['params'] = [parameter for parameter in group['params'] if id(parameter) not in spared]
        optimizer.add_param_group(group | {'params': free, 'weight_decay': 0.0})


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, then ``limit_decay``.

    The tools of this package apply ``limit_decay`` to every optimizer. So only mmdet's and mmpretrain's own tools, and
    ``runner_type='FlexibleRunner'``, need ``optim_wrapper = dict(constructor='upvit_mm.OptimWrapperConstructor')``. Our
    configs have it.

    Args:
        optim_wrapper_cfg: mmengine's.
        paramwise_cfg: mmengine's.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        return limit_decay(super().__call__(model), model)
