"""Train dinov2-tiny, pruned from dinov2-small, to give the dense network's tokens, without head and labels.

    python tools/prune.py configs/pruning/up-dinov2-tiny_from-dinov2-small_in1k.py \\
        checkpoints/dinov2_vits14_pretrain.pth --work-dir work_dirs/up-dinov2-tiny_from-dinov2-small_in1k
    tools/dist_train.sh configs/distillation/up-dinov2-tiny_tokens_8xb64_in1k.py 8

Loss: mean square of the difference of all tokens, in the channels of the embedding that stay. Labels are not read, so
any folder of pictures will do. Batch, epochs and weight are ours and not tuned. We have not run it on ImageNet.
"""

_base_ = [
    '../_base_/models/up-dino_distil.py',
    '../_base_/datasets/imagenet_crop_flip.py',
    '../_base_/schedules/imagenet_distil.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/archs/dinov2-tiny.json',
]
model = dict(
    backbone=dict(arch=_base_.arch),
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/up-dinov2-tiny_from-dinov2-small_in1k/pruned.pth'),
    teacher=dict(
        backbone=dict(arch='dinov2-small'),
        checkpoint='checkpoints/dinov2_vits14_pretrain.pth'),
    distill=dict(
        tokens=dict(
            type='upvit_mm.TokenMSE',
            loss_weight=1.0,
            plan='work_dirs/up-dinov2-tiny_from-dinov2-small_in1k/plan.json')))
train_dataloader = dict(batch_size=64)
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=512)
# without a head there is nothing to evaluate; tools/check_consistency.py measures the tokens
val_dataloader = val_cfg = val_evaluator = None
test_dataloader = test_cfg = test_evaluator = None
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
