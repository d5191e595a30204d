"""Prune dinov3-small to 12 blocks of 192 channels in 3 heads, on unlabelled images (ours; DINOv3: arXiv 2508.10104).

There is no head: channels are scored by the tokens of the last map, which detectors read, and nothing is judged by
posteriors. The three best of six heads of 64 stay whole.

    python tools/prune.py configs/pruning/up-dinov3-tiny_from-dinov3-small_in1k.py \\
        checkpoints/dinov3_vits16_pretrain_lvd1689m-08c60483.pth --work-dir work_dirs/up-dinov3-tiny_from-dinov3-small_in1k

Needs `data/imagenet` (train).
No published figure of a network that was pruned so is known to us. We have not run it on ImageNet.
"""

_base_ = [
    '../_base_/pruning/in1k.py',
    '../_base_/models/up-dino_backbone.py',
    '../_base_/archs/dinov3-small.json',
]
model = dict(backbone=dict(arch=_base_.arch), head=dict(in_channels=_base_.arch.embed_dims[-1]))
prune = dict(target='dinov3-tiny', head_policy='select', criterion='tokens', eval_images=0)
