"""Fine-tuning by distillation on ImageNet: AdamW, AMP, 2 epochs of warm-up, a cosine to zero, averaged weights.

The cosine ends at zero at the last step whatever `train_cfg.max_epochs` is (3 or more). The average of the weights
moves in every step, over a window of 10,000 steps of the config's own batch size; with another one it is as many images
long. The authors moved it once an epoch:

    --cfg-options custom_hooks.0.type=upvit_mm.EpochEMAHook custom_hooks.0.momentum=0.001

Every epoch is seeded, so that a resumed run draws the crops and mixes that the run would have drawn in one go.
AMP needs a GPU; on a CPU add `--cfg-options optim_wrapper.type=OptimWrapper`. No weight decay on norms, biases, class
token and positions is ours.
"""

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-3),
    constructor='upvit_mm.OptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=2, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [
    dict(type='upvit_mm.ImageEMAHook', momentum=1e-4),
    dict(type='upvit_mm.StopOnNonFiniteLoss'),
    dict(type='upvit_mm.SeedEveryEpoch'),
]
