"""Prune pvtv2-b1 to the size of pvtv2-b0 on ImageNet-1k (UP-ViTs, arXiv 2111.15127).

Every width halves; heads keep their number, 64 -> 32 channels each.

    python tools/prune.py configs/pruning/up-pvtv2-b0_from-pvtv2-b1_in1k.py \\
        checkpoints/pvt_v2_b1.pth --work-dir work_dirs/up-pvtv2-b0_from-pvtv2-b1_in1k

Needs `data/imagenet` (train, val).
No published figure that we know of: 75.30 % top-1 is that of a UP-PVTv2-B0 cut from B1 or from B2 (paper).
We have not run it on ImageNet.
"""

_base_ = [
    '../_base_/pruning/in1k.py',
    '../_base_/models/up-pvtv2_classifier.py',
    '../_base_/archs/pvtv2-b1.json',
]
model = dict(backbone=dict(arch=_base_.arch), head=dict(in_channels=_base_.arch.embed_dims[-1]))
prune = dict(target='pvtv2-b0', head_policy='within')
