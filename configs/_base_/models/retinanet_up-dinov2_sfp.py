"""RetinaNet on a plain ViT with patches of 14 px; the leaf config gives backbone.arch and neck.in_channels.

The pyramid has the strides 7, 14, 28, 56 and 112. Anchors follow: each has 14/16 of its usual size.
"""

_base_ = './retinanet_up-deit_sfp.py'
model = dict(
    data_preprocessor=dict(pad_size_divisor=28),
    backbone=dict(type='upvit_mm.UPViT'),
    bbox_head=dict(anchor_generator=dict(strides=[7, 14, 28, 56, 112])))
