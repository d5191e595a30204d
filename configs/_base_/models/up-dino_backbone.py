"""A DINO ViT as it is published, without a head, for pruning by its tokens; the leaf config gives arch and in_channels.

The head has random weights and is not read; mmpretrain's classifiers need one.
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='upvit_mm.UPViT', out_type='cls_token'),
    head=dict(type='LinearClsHead', num_classes=1000, loss=dict(type='CrossEntropyLoss')))
