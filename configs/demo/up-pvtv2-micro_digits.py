"""The demo's dense classifier: a small PVTv2 on digits, two CPU cores, about 4 minutes (measured by us)."""

_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/resumable.py',
    '../_base_/datasets/digits_classification.py',
    '../_base_/schedules/demo_adamw.py',
    '../_base_/archs/pvtv2-micro.json',
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
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2), logger=dict(interval=20))
randomness = dict(seed=0)
