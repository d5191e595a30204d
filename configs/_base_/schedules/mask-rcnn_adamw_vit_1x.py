"""The same for a plain ViT: no weight decay on norms and biases of neck and heads either."""

_base_ = './mask-rcnn_adamw_1x.py'
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
