"""Mask R-CNN 3x multi-scale on COCO with UP-DeiT-Tiny: 8 GPUs x 2 images, 36 epochs; training time not yet measured.

The shorter side of training images is drawn from 640 to 800. No published figure of plain DeiT-Tiny with this recipe is known
to us; not yet measured by us.
"""

_base_ = [
    '../_base_/models/mask-rcnn_up-deit_sfp.py',
    '../_base_/schedules/mask-rcnn_adamw_vit_ms-3x.py',
    '../_base_/resumable.py',
    '../_base_/archs/deit-tiny.json',
]
model = dict(
    backbone=dict(
        arch=_base_.arch, init_cfg=dict(type='Pretrained', checkpoint='checkpoints/up-deit-tiny_in1k.pth')),
    neck=dict(in_channels=_base_.arch.embed_dims))
