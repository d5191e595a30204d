"""Faster R-CNN on UP-PVTv2-B0, blood cells; results: docs/evidence.md.

The backbone starts from the CIFAR-10 classifier of up-pvtv2-b0_cifar10.py.
"""

_base_ = [
    '../_base_/real/mask-rcnn_up-pvtv2_fpn.py',
    '../_base_/real/bccd.py',
    '../_base_/real/adamw_detector.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/archs/pvtv2-b0.json',
]
model = dict(
    type='FasterRCNN',
    backbone=dict(arch=_base_.arch, init_cfg=dict(type='Pretrained', checkpoint='checkpoints/up-pvtv2-b0_cifar10.pth')),
    neck=dict(in_channels=_base_.arch.embed_dims),
    roi_head=dict(bbox_head=dict(num_classes=3), mask_roi_extractor=None, mask_head=None))
train_cfg = dict(max_epochs=24)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=20))
