"""Mask R-CNN on a UP-PVTv2; the leaf config gives backbone.arch and neck.in_channels."""

_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'
model = dict(backbone=dict(_delete_=True, type='upvit_mm.UPPVTv2', drop_path_rate=0.1))
