"""Train dinov2-tiny, pruned from dinov2-small, to give the dense network's tokens, without head and labels.

    python tools/prune.py configs/pruning/up-dinov2-tiny_from-dinov2-small_in1k.py \\
        checkpoints/dinov2_vits14_pretrain.pth --work-dir work_dirs/up-dinov2-tiny_from-dinov2-small_in1k
    tools/dist_train.sh configs/distillation/up-dinov2-tiny_tokens_8xb64_in1k.py 8

Loss: mean square of the difference of all tokens, in the channels of the embedding that stay. Labels are not read, so
any folder of pictures will do. Batch, epochs and weight are ours and not tuned. We have not run it on ImageNet.
"""

_base_ = ['../_base_/distillation/tokens_in1k.py', '../_base_/archs/dinov2-tiny.json']
folder = 'work_dirs/up-dinov2-tiny_from-dinov2-small_in1k'
model = dict(
    backbone=dict(arch=_base_.arch),
    init_cfg=dict(type='Pretrained', checkpoint=f'{folder}/pruned.pth'),
    teacher=dict(backbone=dict(arch='dinov2-small'), checkpoint='checkpoints/dinov2_vits14_pretrain.pth'),
    distill=dict(tokens=dict(plan=f'{folder}/plan.json')))
