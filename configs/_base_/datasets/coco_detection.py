"""COCO in data/coco, boxes; workers of the training start anew in every epoch, for `../resumable.py`."""

_base_ = 'mmdet::_base_/datasets/coco_detection.py'
train_dataloader = dict(persistent_workers=False)
