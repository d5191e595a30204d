"""RetinaNet on UP-PVTv2-B0, nuclei; results: docs/evidence.md.

The backbone starts from the CIFAR-10 classifier of up-pvtv2-b0_cifar10.py.
"""

_base_ = [
    '../_base_/real/retinanet_up-pvtv2_fpn.py',
    '../_base_/real/nuclei.py',
    '../_base_/real/adamw_detector.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/archs/pvtv2-b0.json',
]
model = dict(
    backbone=dict(arch=_base_.arch, init_cfg=dict(type='Pretrained', checkpoint='checkpoints/up-pvtv2-b0_cifar10.pth')),
    neck=dict(in_channels=_base_.arch.embed_dims),
    bbox_head=dict(num_classes=1),
    test_cfg=dict(max_per_img=400))  # one picture has 375 nuclei
train_cfg = dict(max_epochs=12)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=20))
