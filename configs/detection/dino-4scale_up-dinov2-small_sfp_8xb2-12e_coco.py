"""The detector DINO on COCO with UP-DINOv2-Small: 8 GPUs x 2 images, 12 epochs; training time not yet measured.

Data, schedule and heads are mmdet's. In float32, because mmcv's deformable attention has no bfloat16.
No published figure of DINOv2-Small with this recipe is known to us; not yet measured by us.
The backbone checkpoint is the dense or a pruned one, in any layout that upvit_mm.checkpoints knows.
"""

_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    '../_base_/resumable.py',
    '../_base_/archs/dinov2-small.json',
]
model = dict(
    data_preprocessor=dict(pad_size_divisor=56),  # then a place has the same share of the sides on all four maps
    backbone=dict(
        _delete_=True,
        type='upvit_mm.UPViT',
        arch=_base_.arch,
        window_size=14,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/dinov2-small.pth')),
    neck=dict(
        _delete_=True,
        type='upvit_mm.SimpleFeaturePyramid',
        in_channels=_base_.arch.embed_dims,
        out_channels=256,
        start_level=1,
        num_outs=4))
train_dataloader = dict(persistent_workers=False)  # for resumable.py
optim_wrapper = dict(
    constructor='upvit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.8, norm_decay_mult=0.0, bias_decay_mult=0.0))
