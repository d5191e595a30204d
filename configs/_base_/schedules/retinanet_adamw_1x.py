"""12 epochs, lr steps at 8 and 11, warm-up over 500 iterations; AdamW for batches of 16."""

_base_ = 'mmdet::_base_/schedules/schedule_1x.py'
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4),
    constructor='upvit_mm.OptimWrapperConstructor')
