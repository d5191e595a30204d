"""Prune pvtv2-b2 to the size of pvtv2-b1 on ImageNet-1k (UP-ViTs, arXiv 2111.15127).

Blocks go, widths stay: [3, 4, 6, 3] -> [2, 2, 2, 2].

    python tools/prune.py configs/pruning/up-pvtv2-b1_from-pvtv2-b2_in1k.py \\
        checkpoints/pvt_v2_b2.pth --work-dir work_dirs/up-pvtv2-b1_from-pvtv2-b2_in1k

Needs `data/imagenet` (train, val).
After fine-tuning: 79.48 % top-1, against 78.7 % of PVTv2-B1 (paper).
We have not run it on ImageNet.
"""

_base_ = [
    '../_base_/pruning/in1k.py',
    '../_base_/models/up-pvtv2_classifier.py',
    '../_base_/archs/pvtv2-b2.json',
]
model = dict(backbone=dict(arch=_base_.arch), head=dict(in_channels=_base_.arch.embed_dims[-1]))
prune = dict(target='pvtv2-b1', head_policy='within')
