"""CIFAR-10: 50,000 + 10,000 photographs of 32 px, 10 classes, shown at 64 px (tools/prepare_data.py cifar10).

The validation set is the official test set; nothing is chosen by it.
"""

data_root = 'data/cifar10/'
batch = dict(cpu=64, gpu=512)['{{$UPVIT_MM_SCALE:cpu}}']
workers = dict(cpu=1, gpu=12)['{{$UPVIT_MM_SCALE:cpu}}']
data_preprocessor = dict(
    num_classes=10, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='Resize', scale=64),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=64),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=batch,
    num_workers=workers,
    persistent_workers=False,  # for ../resumable.py
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=256,
    num_workers=workers,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='val', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
