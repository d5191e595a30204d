"""Fine-tune pvtv2-b0, pruned from pvtv2-b2, by distillation on ImageNet-1k: UP-PVTv2-B0 (UP-ViTs, arXiv 2111.15127).

    python tools/prune.py configs/pruning/up-pvtv2-b0_from-pvtv2-b2_in1k.py \\
        checkpoints/pvt_v2_b2.pth --work-dir work_dirs/up-pvtv2-b0_from-pvtv2-b2_in1k
    tools/dist_train.sh configs/classification/up-pvtv2-b0_8xb128_in1k.py 8

8 GPUs with 128 images each; with other numbers say `--auto-scale-lr`. Loss: cross entropy on CutMix labels + 20 times
the squared error on the features in front of the head (paper), here on the channels that plan.json kept.
Learning rate, weight decay and batch are PVTv2's own (arXiv 2106.13797); 200 epochs are those of UP-DeiT. Schedule,
AMP, averaged weights and the authors' way to average: `_base_/schedules/imagenet_distil.py`.

Cost (estimated, not measured): 11 GFLOP an image for student and teacher, 3 hours on 8 A100 at a tenth of their
peak rate, since depth-wise convolutions wait for memory; loaders that give 5,000 images/s all together take 14.
Expected: 75.30 % top-1, against 70.47 % of PVTv2-B0 (paper). We have not run it on ImageNet.
"""

_base_ = [
    '../_base_/models/up-pvtv2_distil.py',
    '../_base_/datasets/imagenet_crop_flip.py',
    '../_base_/schedules/imagenet_distil.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/archs/pvtv2-b0.json',
]
model = dict(
    backbone=dict(arch=_base_.arch),
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/up-pvtv2-b0_from-pvtv2-b2_in1k/pruned.pth'),
    teacher=dict(
        backbone=dict(arch='pvtv2-b2'),
        head=dict(in_channels=512),
        checkpoint='checkpoints/pvt_v2_b2.pth'),
    distill=dict(
        feature=dict(
            type='upvit_mm.FeatureMSE',
            loss_weight=20.0,
            plan='work_dirs/up-pvtv2-b0_from-pvtv2-b2_in1k/plan.json')))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
auto_scale_lr = dict(base_batch_size=1024)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
