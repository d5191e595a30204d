"""RetinaNet for small data sets: three levels, anchors for objects of 20 px and more.

UPVIT_MM_SCALE=cpu: heads of 64 channels in 2 layers. gpu: of 256 in 4. They have norms: with the usual small start weights
narrow heads without norms learn nothing in the first epochs (box AP on BCCD after two: 1 without, 25 with).
"""

_base_ = '../models/retinanet_up-pvtv2_fpn.py'
channels = dict(cpu=64, gpu=256)['{{$UPVIT_MM_SCALE:cpu}}']
model = dict(
    neck=dict(out_channels=channels, num_outs=3),
    bbox_head=dict(
        in_channels=channels,
        feat_channels=channels,
        norm_cfg=dict(type='GN', num_groups=16),
        stacked_convs=dict(cpu=2, gpu=4)['{{$UPVIT_MM_SCALE:cpu}}'],
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32])))
