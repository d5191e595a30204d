"""Mask R-CNN 3x multi-scale on COCO with UP-PVTv2-B1: 8 GPUs x 2 images, 36 epochs; training time not yet measured.

The shorter side of training images is drawn from 640 to 800. No published figure of plain PVTv2-B1 with this recipe is known
to us; not yet measured by us.
"""

_base_ = [
    '../_base_/models/mask-rcnn_up-pvtv2_fpn.py',
    '../_base_/schedules/mask-rcnn_adamw_ms-3x.py',
    '../_base_/resumable.py',
    '../_base_/archs/pvtv2-b1.json',
]
model = dict(
    backbone=dict(
        arch=_base_.arch, init_cfg=dict(type='Pretrained', checkpoint='checkpoints/up-pvtv2-b1_in1k.pth')),
    neck=dict(in_channels=_base_.arch.embed_dims))
