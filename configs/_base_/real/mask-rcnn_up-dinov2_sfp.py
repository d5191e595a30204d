"""Mask R-CNN for small data sets: four levels, anchors for objects of 10 px and more.

UPVIT_MM_SCALE=cpu: heads of 64 channels, 256 regions a picture. gpu: of 256, 512 regions. They
have norms, see retinanet_up-pvtv2_fpn.py.
"""

_base_ = '../models/mask-rcnn_up-dinov2_sfp.py'
channels = dict(cpu=64, gpu=256)['{{$UPVIT_MM_SCALE:cpu}}']
norm = dict(type='GN', num_groups=16)
model = dict(
    backbone=dict(window_size=0),
    neck=dict(out_channels=channels, num_outs=4),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        init_cfg=dict(type='Normal', layer='Conv2d', std=0.03),
        anchor_generator=dict(scales=[3], strides=[3.5, 7, 14, 28])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, finest_scale=28),
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=4 * channels,
            norm_cfg=norm),
        mask_roi_extractor=dict(out_channels=channels, finest_scale=28),
        mask_head=dict(
            norm_cfg=norm,
            num_convs=dict(cpu=2, gpu=4)['{{$UPVIT_MM_SCALE:cpu}}'], in_channels=channels, conv_out_channels=channels)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=dict(cpu=1000, gpu=2000)['{{$UPVIT_MM_SCALE:cpu}}']),
        rcnn=dict(sampler=dict(num=dict(cpu=256, gpu=512)['{{$UPVIT_MM_SCALE:cpu}}']))))
