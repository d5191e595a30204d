"""Mask R-CNN on a plain ViT with patches of 14 px; the leaf config gives backbone.arch and neck.in_channels.

The pyramid has the strides 3.5, 7, 14, 28 and 56. Anchors follow: each has 14/16 of its usual size. So do the sizes at which a
region is read from the next level.
"""

_base_ = './mask-rcnn_up-deit_sfp.py'
regions = dict(featmap_strides=[3.5, 7, 14, 28], finest_scale=49)
model = dict(
    data_preprocessor=dict(pad_size_divisor=28),
    backbone=dict(type='upvit_mm.UPViT'),
    rpn_head=dict(anchor_generator=dict(strides=[3.5, 7, 14, 28, 56])),
    roi_head=dict(bbox_roi_extractor=regions, mask_roi_extractor=regions))
