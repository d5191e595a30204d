"""RetinaNet on digit scenes; `make demo` trains it for 6 epochs (measured by us: README).

The heads are narrow and the anchors fit digits of 16 to 64 px; everything else is mmdet's RetinaNet.
"""

_base_ = [
    '../_base_/models/retinanet_up-pvtv2_fpn.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/demo_adamw.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/resumable.py',
    '../_base_/archs/pvtv2-micro.json',
]
model = dict(
    backbone=dict(arch=_base_.arch, drop_path_rate=0.05),
    neck=dict(in_channels=_base_.arch.embed_dims, out_channels=64, num_outs=3),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=2, ratios=[1.0, 1.6, 2.6], strides=[8, 16, 32])))
# at the heads' rate a few epochs would first destroy what the backbone has learned
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
val_evaluator = dict(
    type='CocoMetric', ann_file=_base_.data_root + 'annotations/instances_val.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=18, val_interval=9)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2), logger=dict(interval=20))
randomness = dict(seed=0)
