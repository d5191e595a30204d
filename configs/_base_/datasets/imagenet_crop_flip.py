"""ImageNet-1k in data/imagenet (train and val in class folders); training crops and flips, nothing else.

Workers of the training start anew in every epoch, for `upvit_mm.SeedEveryEpoch`.
"""

_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(persistent_workers=True)
test_dataloader = val_dataloader
