"""The small plain DeiT on digits of 12 to 58 px, for detectors: scenes have theirs at 16 to 64 px; about 9 minutes.

What RandomResizedCrop does on ImageNet: without a hierarchy a ViT hardly knows a digit of a size that it never saw.
"""

_base_ = './up-deit-micro_digits.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResize', scale=(64, 64), ratio_range=(0.4, 1.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=64, padding=4, pad_if_needed=True, padding_mode='edge'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
