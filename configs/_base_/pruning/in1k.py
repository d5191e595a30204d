"""ImageNet for pruning: 5,000 training images to score and compensate on (the paper's 5k), 5,000 others to judge on."""

_base_ = ['mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py', 'mmpretrain::_base_/default_runtime.py']
prune = dict(method='fisher', draws=16, per_class=5, eval_images=5000)
