"""RetinaNet on a pretrained ViT-S/14, nuclei; results: docs/evidence.md.

The backbone starts from any ViT-S/14 of DINOv2's shape, in any known layout. On a CPU it attends in windows as large as the
training crops: in whole pictures of 1000 px attention over everything takes a minute.
"""

_base_ = [
    '../_base_/real/retinanet_up-dinov2_sfp.py',
    '../_base_/real/nuclei.py',
    '../_base_/real/adamw_vit_detector.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/archs/dinov2-small.json',
]
model = dict(
    backbone=dict(
        arch=_base_.arch,
        window_size=dict(cpu=16, gpu=0)['{{$UPVIT_MM_SCALE:cpu}}'],
        global_blocks=dict(cpu=(), gpu=None)['{{$UPVIT_MM_SCALE:cpu}}'],
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dinov2-small.pth')),
    neck=dict(in_channels=_base_.arch.embed_dims),
    bbox_head=dict(num_classes=1),
    test_cfg=dict(max_per_img=400))  # one picture has 375 nuclei
train_cfg = dict(max_epochs=5)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1), logger=dict(interval=20))
