"""Student of a dense UP-PVTv2, 1000 classes; the leaf config gives archs, checkpoints and losses.

The head's in_channels follow the student's arch; the leaf config gives those of the teacher's head. CutMix mixes every
batch as in the authors' code (every image keeps the larger share of itself), and the teacher sees the same images.
"""

_base_ = './up-pvtv2_classifier.py'
model = dict(
    type='upvit_mm.DistillClassifier',
    backbone=dict(drop_path_rate=0.1),
    head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss', use_soft=True)),
    teacher=dict(
        backbone=dict(type='upvit_mm.UPPVTv2', out_indices=(3, )),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000)),
    train_cfg=dict(augments=dict(type='upvit_mm.data.cutmix.UPCutMix', alpha=0.5)))
