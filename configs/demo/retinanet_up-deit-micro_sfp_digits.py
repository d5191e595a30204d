"""RetinaNet on digit scenes with a small plain DeiT; not part of `make demo` (measured by us: docs/benchmarks.md).

Patches are 8 px, so the pyramid's strides are half of those that a stride-16 map would give.
"""

_base_ = [
    '../_base_/models/retinanet_up-deit_sfp.py',
    '../_base_/datasets/digits_instance.py',
    '../_base_/schedules/demo_adamw.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/resumable.py',
    '../_base_/archs/deit-micro.json',
]
model = dict(
    # windows as large as the classifier's pictures, 8x8 patches: its attention knows nothing larger
    backbone=dict(arch=_base_.arch, window_size=8, global_blocks=(), drop_path_rate=0.05),
    neck=dict(in_channels=_base_.arch.embed_dims, out_channels=64, start_level=2, num_outs=3),
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
train_cfg = dict(max_epochs=12, val_interval=3)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2), logger=dict(interval=20))
randomness = dict(seed=0)
