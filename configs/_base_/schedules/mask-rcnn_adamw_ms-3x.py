"""COCO multi-scale: the shorter side from 640 to 800, 12 epochs of 3 passes, lr steps at 9 and 11; AdamW for batches of 16.

Data and runtime come along, since mmdet has them in one file.
"""

_base_ = 'mmdet::common/ms-poly_3x_coco-instance.py'
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4),
    constructor='upvit_mm.OptimWrapperConstructor')
train_dataloader = dict(persistent_workers=False)  # for ../resumable.py
