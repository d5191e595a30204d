"""BCCD, blood cells in 3 classes: 205 + 87 micrographs of 640 x 480 with boxes (tools/prepare_data.py bccd).

UPVIT_MM_SCALE=cpu: 252 x 189 px. gpu: 1024 x 768.
"""

_base_ = './micrographs.py'
data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
size = dict(cpu=(252, 189), gpu=(1024, 768))['{{$UPVIT_MM_SCALE:cpu}}']
batch = dict(cpu=2, gpu=16)['{{$UPVIT_MM_SCALE:cpu}}']
workers = dict(cpu=1, gpu=8)['{{$UPVIT_MM_SCALE:cpu}}']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=batch,
    num_workers=workers,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=workers,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/instances_val.json', metric='bbox')
test_evaluator = val_evaluator
