"""Which constructors of other packages cannot group the parameters of our backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from upvit_mm.registry import families_of, is_type, scope_of

OURS = "constructor='upvit_mm.LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=0.7)"


def check_constructor(cfg: Mapping[str, Any]) -> None:
    """Refuse a constructor of layer-wise learning rates that fails with our backbones, and name ours.

    mmdet's knows only ConvNeXt, and ends with an error that has no message. mmpretrain's asks the model for depths; its
    own classifiers can answer, mmdet's detectors cannot.

    Args:
        cfg: of a detector or a classifier; one without ``optim_wrapper`` or ``model`` passes.

    Raises:
        ValueError: the config has one of our backbones, and such a constructor.
    """
    constructor = (cfg.get('optim_wrapper') or {}).get('constructor')
    backbone = (cfg.get('model') or {}).get('backbone', {}).get('type')
    scope = scope_of(cfg)
    if not families_of(backbone, scope):
        return
    of_mmdet, of_mmpretrain = (
        is_type(constructor, name, registry=OPTIM_WRAPPER_CONSTRUCTORS, scope=scope)
        for name in ('LearningRateDecayOptimizerConstructor', 'LearningRateDecayOptimWrapperConstructor')
    )
    if of_mmdet or (of_mmpretrain and scope == 'mmdet'):
        why = 'it knows only ConvNeXt' if of_mmdet else 'a detector of mmdet does not tell it the depth of a layer'
        raise ValueError(f'optim_wrapper.constructor = {constructor!r}: {why}. Use {OURS}.')
