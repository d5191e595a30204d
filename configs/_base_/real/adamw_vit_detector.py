"""The same for a detector on a pretrained ViT: each block learns at 0.8 of the rate of the block after it."""

_base_ = './adamw_detector.py'
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    constructor='upvit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.8, norm_decay_mult=0.0, bias_decay_mult=0.0))
