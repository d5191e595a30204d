"""Train dinov3-tiny, pruned from dinov3-small, to give the dense network's tokens, without head and labels.

    python tools/prune.py configs/pruning/up-dinov3-tiny_from-dinov3-small_in1k.py \\
        checkpoints/dinov3_vits16_pretrain_lvd1689m-08c60483.pth --work-dir work_dirs/up-dinov3-tiny_from-dinov3-small_in1k
    tools/dist_train.sh configs/distillation/up-dinov3-tiny_tokens_8xb64_in1k.py 8

Loss: mean square of the difference of all tokens, in the channels of the embedding that stay. Labels are not read, so
any folder of pictures will do. Batch, epochs and weight are ours and not tuned. We have not run it on ImageNet.
"""

_base_ = ['../_base_/distillation/tokens_in1k.py', '../_base_/archs/dinov3-tiny.json']
folder = 'work_dirs/up-dinov3-tiny_from-dinov3-small_in1k'
model = dict(
    backbone=dict(arch=_base_.arch),
    init_cfg=dict(type='Pretrained', checkpoint=f'{folder}/pruned.pth'),
    teacher=dict(backbone=dict(arch='dinov3-small'), checkpoint='checkpoints/dinov3_vits16_pretrain_lvd1689m-08c60483.pth'),
    distill=dict(tokens=dict(plan=f'{folder}/plan.json')))
