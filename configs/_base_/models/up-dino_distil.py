"""Student of a dense DINO ViT, without a head and without labels; the leaf config gives archs, checkpoints and losses."""

model = dict(
    type='upvit_mm.DistillClassifier',
    backbone=dict(type='upvit_mm.UPViT', out_type='cls_token'),
    head=None,
    teacher=dict(backbone=dict(type='upvit_mm.UPViT', out_type='cls_token')))
