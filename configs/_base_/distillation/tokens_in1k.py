"""A DINO ViT learns the tokens of a dense one on ImageNet's pictures, without head and labels.

The leaf config gives archs, checkpoints and the plan. There is nothing to evaluate without a head;
tools/check_consistency.py measures the tokens.
"""

_base_ = [
    '../models/up-dino_distil.py',
    '../datasets/imagenet_crop_flip.py',
    '../schedules/imagenet_distil.py',
    'mmpretrain::_base_/default_runtime.py',
]
model = dict(distill=dict(tokens=dict(type='upvit_mm.TokenMSE', loss_weight=1.0)))
train_dataloader = dict(batch_size=64)
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=512)
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
