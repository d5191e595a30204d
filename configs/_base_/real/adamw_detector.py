"""The same for a detector on a UP-PVTv2; neck and heads give float32 to mmcv's operators."""

_base_ = './adamw.py'
custom_hooks = [*_base_.custom_hooks, dict(type='upvit_mm.Float32Outputs')]
randomness = dict(seed=0)
