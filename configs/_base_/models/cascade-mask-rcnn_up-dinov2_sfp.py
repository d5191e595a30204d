"""Cascade Mask R-CNN on a plain ViT with patches of 14 px; the leaf config gives backbone.arch and neck.in_channels.

Strides, anchors and regions are those of `mask-rcnn_up-dinov2_sfp.py`.
"""

_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
regions = dict(featmap_strides=[3.5, 7, 14, 28], finest_scale=49)
model = dict(
    data_preprocessor=dict(pad_size_divisor=28),
    backbone=dict(_delete_=True, type='upvit_mm.UPViT', out_type='featmap', window_size=14, drop_path_rate=0.1),
    neck=dict(_delete_=True, type='upvit_mm.SimpleFeaturePyramid', out_channels=256, start_level=0, num_outs=5),
    rpn_head=dict(anchor_generator=dict(strides=[3.5, 7, 14, 28, 56])),
    roi_head=dict(bbox_roi_extractor=regions, mask_roi_extractor=regions))
