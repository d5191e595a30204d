"""COCO in data/coco, boxes and masks; workers of the training start anew in every epoch, for `../resumable.py`."""

_base_ = 'mmdet::_base_/datasets/coco_instance.py'
train_dataloader = dict(persistent_workers=False)
