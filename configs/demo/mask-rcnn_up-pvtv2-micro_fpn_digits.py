"""Mask R-CNN on digit scenes; `make demo` trains it for 6 epochs (measured by us: README).

The heads are narrow and the anchors fit digits of 16 to 64 px; everything else is mmdet's Mask R-CNN.
"""

_base_ = [
    '../_base_/models/mask-rcnn_up-pvtv2_fpn.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/demo_adamw.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/resumable.py',
    '../_base_/archs/pvtv2-micro.json',
]
model = dict(
    backbone=dict(arch=_base_.arch, drop_path_rate=0.05),
    neck=dict(in_channels=_base_.arch.embed_dims, out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], ratios=[1.0, 1.6, 2.6], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=10)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)))
# at the heads' rate a few epochs would first destroy what the backbone has learned
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
val_evaluator = dict(
    type='CocoMetric', ann_file=_base_.data_root + 'annotations/instances_val.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=7, val_interval=7)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2), logger=dict(interval=20))
randomness = dict(seed=0)
