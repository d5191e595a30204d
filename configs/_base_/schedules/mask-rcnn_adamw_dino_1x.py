"""The same for a DINO ViT: each block learns at 0.8 of the rate of the block after it.

In bfloat16, which needs a GPU. Neck and heads then give float32 to mmcv's operators. The base `resumable.py` is included.
"""

_base_ = ['./mask-rcnn_adamw_vit_1x.py', '../resumable.py']
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    constructor='upvit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8))
custom_hooks = [*_base_.custom_hooks, dict(type='upvit_mm.Float32Outputs')]
