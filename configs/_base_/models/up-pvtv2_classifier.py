"""Classifier on a UP-PVTv2, 1000 classes from the mean token; the leaf config gives arch and in_channels."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='upvit_mm.UPPVTv2', out_indices=(3, )),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
