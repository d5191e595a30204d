"""A small plain DeiT (patches of 8 px) on digits, two CPU cores, about 9 minutes; not part of `make demo`.

A plain ViT learns the digits four times slower than a PVTv2, so it has four times the epochs.
"""

_base_ = [
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/resumable.py',
    '../_base_/datasets/digits_classification.py',
    '../_base_/schedules/demo_adamw.py',
    '../_base_/archs/deit-micro.json',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(type='upvit_mm.UPDeiT', arch=_base_.arch, out_type='cls_token', drop_path_rate=0.05),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=_base_.arch.embed_dims[-1],
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=40, val_interval=10)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2), logger=dict(interval=20))
randomness = dict(seed=0)
