"""Cascade Mask R-CNN 1x on COCO with UP-DINOv2-Small: 8 GPUs x 2 images, 12 epochs; training time not yet measured.

No published figure of DINOv2-Small with this recipe is known to us; not yet measured by us.
The backbone checkpoint is the dense or a pruned one, in any layout that upvit_mm.checkpoints knows.
"""

_base_ = [
    '../_base_/models/cascade-mask-rcnn_up-dinov2_sfp.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/mask-rcnn_adamw_dino_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/archs/dinov2-small.json',
]
model = dict(
    backbone=dict(arch=_base_.arch, init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dinov2-small.pth')),
    neck=dict(in_channels=_base_.arch.embed_dims))
