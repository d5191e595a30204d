"""Mask R-CNN 1x on COCO with UP-PVTv2-B2: 8 GPUs x 2 images, 12 epochs; training time not yet measured.

To beat: plain PVTv2-B2 with this recipe, box AP 45.3, mask AP 41.2 (paper: arXiv 2106.13797, table 3). Not yet measured by us.
The backbone checkpoint is a pruned and fine-tuned one, in any layout that upvit_mm.checkpoints knows.
"""

_base_ = [
    '../_base_/models/mask-rcnn_up-pvtv2_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/mask-rcnn_adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/resumable.py',
    '../_base_/archs/pvtv2-b2.json',
]
model = dict(
    backbone=dict(
        arch=_base_.arch, init_cfg=dict(type='Pretrained', checkpoint='checkpoints/up-pvtv2-b2_in1k.pth')),
    neck=dict(in_channels=_base_.arch.embed_dims))
