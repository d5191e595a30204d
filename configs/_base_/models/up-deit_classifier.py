"""Classifier on a plain UP-DeiT, 1000 classes from the class token; the leaf config gives arch and in_channels."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='upvit_mm.UPDeiT', out_type='cls_token'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
