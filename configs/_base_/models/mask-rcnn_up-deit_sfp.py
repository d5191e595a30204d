"""Mask R-CNN on a plain UP-DeiT with a simple feature pyramid; the leaf config gives backbone.arch and neck.in_channels.

All but four evenly spread blocks attend within windows of 14x14 tokens: at 800x1333 about half the time of a training
step (docs/benchmarks.md).
"""

_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
model = dict(
    backbone=dict(_delete_=True, type='upvit_mm.UPDeiT', out_type='featmap', window_size=14, drop_path_rate=0.1),
    neck=dict(_delete_=True, type='upvit_mm.SimpleFeaturePyramid', out_channels=256, start_level=0, num_outs=5))
