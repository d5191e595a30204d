"""Prune deit-base to the size of deit-tiny on ImageNet-1k (UP-ViTs, arXiv 2111.15127).

The embedding, the FFN and the number of heads shrink: the three best of twelve heads of 64 stay whole; 'regroup' with
tie_qkv is what the authors' code does.

    python tools/prune.py configs/pruning/up-deit-tiny_from-deit-base_in1k.py \\
        checkpoints/deit_base_patch16_224-b5f2ef4d.pth --work-dir work_dirs/up-deit-tiny_from-deit-base_in1k

Needs `data/imagenet` (train, val).
After fine-tuning: 75.79 % top-1, against 72.2 % of DeiT-T (paper).
We have not run it on ImageNet.
"""

_base_ = [
    '../_base_/pruning/in1k.py',
    '../_base_/models/up-deit_classifier.py',
    '../_base_/archs/deit-base.json',
]
model = dict(backbone=dict(arch=_base_.arch), head=dict(in_channels=_base_.arch.embed_dims[-1]))
prune = dict(target='deit-tiny', head_policy='select')
