"""Nuclei of the Data Science Bowl 2018, 1 class: 470 + 97 micrographs of 256 to 1040 px with masks
(tools/prepare_data.py nuclei).

Half of the nuclei are below 21 px, so pictures are enlarged, in tests whole. UPVIT_MM_SCALE=cpu: by 1.5, training crops of
224 px. gpu: by 2, crops of 512 px.
"""

_base_ = './micrographs.py'
data_root = 'data/nuclei/'
metainfo = dict(classes=('nucleus', ))
zoom = dict(cpu=1.5, gpu=2.0)['{{$UPVIT_MM_SCALE:cpu}}']
crop = dict(cpu=(149, 149), gpu=(256, 256))['{{$UPVIT_MM_SCALE:cpu}}']
batch = dict(cpu=2, gpu=16)['{{$UPVIT_MM_SCALE:cpu}}']
workers = dict(cpu=1, gpu=8)['{{$UPVIT_MM_SCALE:cpu}}']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomCrop', crop_size=crop, allow_negative_crop=True),  # first: enlarging all masks takes 3 times as long
    dict(type='Resize', scale_factor=zoom, keep_ratio=True),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=zoom, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
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
val_evaluator = dict(
    type='CocoMetric', ann_file=data_root + 'annotations/instances_val.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
