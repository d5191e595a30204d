"""The same for a DINO ViT: each block learns at 0.8 of the rate of the block after it, and in bfloat16 (needs a GPU)."""

_base_ = './mask-rcnn_adamw_vit_1x.py'
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    constructor='upvit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8))
