"""The demo's dense DeiT teaches what was pruned from it, on digits.

    python tools/prune.py configs/demo/up-deit-micro_digits.py work_dirs/up-deit-micro_digits/epoch_40.pth \\
        --budget macs=40%@64x64 --work-dir DIR
    python tools/train.py configs/demo/up-deit-micro_distil_digits.py --cfg-options \\
        model.backbone.arch=DIR/arch.json model.init_cfg.checkpoint=DIR/pruned.pth

Another dense checkpoint: also `model.teacher.checkpoint=...`. The head's in_channels follow the arch. Without options
the student is the dense network itself.
"""

_base_ = './up-deit-micro_digits.py'
model = dict(
    type='upvit_mm.DistillClassifier',
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=10,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    init_cfg=dict(type='Pretrained', checkpoint='work_dirs/up-deit-micro_digits/epoch_40.pth'),
    teacher=dict(
        backbone=dict(type='upvit_mm.UPDeiT', arch=_base_.arch, out_type='cls_token'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=_base_.arch.embed_dims[-1]),
        checkpoint='work_dirs/up-deit-micro_digits/epoch_40.pth'),
    distill=dict(soft=dict(type='upvit_mm.SoftTargetKL', loss_weight=6.4)))
