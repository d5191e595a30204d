"""The demo's dense PVTv2 teaches what was pruned from it, on digits.

    python tools/prune.py configs/demo/up-pvtv2-micro_digits.py work_dirs/demo/classifiers/dense/epoch_10.pth \\
        --budget macs=40%@64x64 --work-dir DIR
    python tools/train.py configs/demo/up-pvtv2-micro_distil_digits.py --cfg-options \\
        model.backbone.arch=DIR/arch.json model.init_cfg.checkpoint=DIR/pruned.pth

Another dense checkpoint: also `model.teacher.checkpoint=...`. The head's in_channels follow the arch. Without options
the student is the dense network itself.
"""

_base_ = './up-pvtv2-micro_digits.py'
model = dict(
    type='upvit_mm.DistillClassifier',
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=10,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/demo/classifiers/dense/epoch_10.pth'),
    teacher=dict(
        backbone=dict(type='upvit_mm.UPPVTv2', arch=_base_.arch, out_indices=(3, )),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=_base_.arch.embed_dims[-1]),
        checkpoint='work_dirs/demo/classifiers/dense/epoch_10.pth'),
    distill=dict(soft=dict(type='upvit_mm.SoftTargetKL', loss_weight=6.4)))
