"""Fine-tune deit-tiny, pruned from deit-base, by distillation on ImageNet-1k: UP-DeiT-T (UP-ViTs, arXiv 2111.15127).

    python tools/prune.py configs/pruning/up-deit-tiny_from-deit-base_in1k.py \\
        checkpoints/deit_base_patch16_224-b5f2ef4d.pth --work-dir work_dirs/up-deit-tiny_from-deit-base_in1k
    tools/dist_train.sh configs/classification/up-deit-tiny_8xb32_in1k.py 8

8 GPUs with 32 images each, 200 epochs, AdamW, CutMix and loss are the authors'; with other numbers say
`--auto-scale-lr`. Loss: cross entropy on CutMix labels + 6.4 times the KL to the teacher's posteriors. Schedule, AMP,
averaged weights and the authors' way to average: `_base_/schedules/imagenet_distil.py`.

Cost (estimated, not measured): 43 GFLOP an image for student and teacher, 4 hours on 8 A100 at a third of their
peak rate; loaders that give 5,000 images/s all together take 14.
Expected: 75.79 % top-1, against 72.2 % of DeiT-T (paper). We have not run it on ImageNet.
"""

_base_ = [
    '../_base_/models/up-deit_distil.py',
    '../_base_/datasets/imagenet_crop_flip.py',
    '../_base_/schedules/imagenet_distil.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/archs/deit-tiny.json',
]
model = dict(
    backbone=dict(arch=_base_.arch),
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/up-deit-tiny_from-deit-base_in1k/pruned.pth'),
    teacher=dict(
        backbone=dict(arch='deit-base'),
        head=dict(in_channels=768),
        checkpoint='checkpoints/deit_base_patch16_224-b5f2ef4d.pth'),
    distill=dict(soft=dict(type='upvit_mm.SoftTargetKL', loss_weight=6.4)))
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=256)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
