"""The same for a plain ViT: no weight decay on norms, biases, class token and position embeddings."""

_base_ = './mask-rcnn_adamw_ms-3x.py'
optim_wrapper = dict(
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={'cls_token': dict(decay_mult=0.0), 'pos_embed': dict(decay_mult=0.0)}))
