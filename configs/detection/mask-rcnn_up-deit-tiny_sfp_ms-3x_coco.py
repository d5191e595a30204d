"""Mask R-CNN 3x multi-scale on COCO with UP-DeiT-Tiny: 8 GPUs x 2 images, 36 epochs; training time not yet measured.

The shorter side of training images is drawn from 640 to 800. No published figure of plain DeiT-Tiny with this recipe is known
to us; not yet measured by us.
"""

_base_ = [
    '../_base_/models/mask-rcnn_up-deit_sfp.py',
    'mmdet::common/ms-poly_3x_coco-instance.py',
    '../_base_/archs/deit-tiny.json',
]
model = dict(
    backbone=dict(
        arch=_base_.arch, init_cfg=dict(type='Pretrained', checkpoint='checkpoints/up-deit-tiny_in1k.pth')),
    neck=dict(in_channels=_base_.arch.embed_dims))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'cls_token': dict(decay_mult=0.0), 'pos_embed': dict(decay_mult=0.0)}))
