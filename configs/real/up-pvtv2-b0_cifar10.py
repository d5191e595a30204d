"""CIFAR-10 on UP-PVTv2-B0, from scratch; results: docs/evidence.md."""

_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/real/cifar10.py',
    '../_base_/real/adamw.py',
    '../_base_/archs/pvtv2-b0.json',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(type='upvit_mm.UPPVTv2', arch=_base_.arch, out_indices=(3, ), drop_path_rate=0.05),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=_base_.arch.embed_dims[-1],
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
train_cfg = dict(max_epochs=5)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=100))
randomness = dict(seed=0)
