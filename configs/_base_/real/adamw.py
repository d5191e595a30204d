"""AdamW, warm-up and a cosine to zero, for any number of epochs (train_cfg.max_epochs).

UPVIT_MM_SCALE=cpu: in float32, since few CPUs are fast in bfloat16. gpu: in bfloat16.
"""

_base_ = '../resumable.py'
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=100)  # and after the last
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type=dict(cpu='OptimWrapper', gpu='upvit_mm.Bfloat16OptimWrapper')['{{$UPVIT_MM_SCALE:cpu}}'],
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=1.0),
    constructor='upvit_mm.OptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=30),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True),
]
