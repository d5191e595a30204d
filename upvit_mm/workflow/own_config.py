"""Write the config of a detector or a classifier for somebody's own data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.zoo import get_arch, resolve_arch
from upvit_mm.data.checks import check_datasets
from upvit_mm.data.own_data import OwnData, look_at_class_folders, look_at_coco
from upvit_mm.data.voc_to_coco import look_at_voc, voc_root
from upvit_mm.files import write_text_atomically
from upvit_mm.models.arch_in_config import map_widths

LARGEST = (800, 1333)  # (shorter, longer) side of a detector's pictures in pixels
LARGEST_BATCH, PIXELS = 16, 2 * 800 * 1333  # a detector's batch has about these pixels, and at most 16 pictures
CROPS = (64, 224)  # smallest and largest side of a classifier's pictures in pixels
SEEN = 24_000  # pictures that a training sees if its data are few
EPOCHS = (12, 100)  # least and most
COCO_LIMIT, HEAD_ROOM = 100, 1.5  # detections in a picture: at least mmdet's, and more than the fullest picture has
RATES = {'retinanet': 1e-4, 'mask-rcnn': 2e-4}  # for 16 pictures, as in configs/_base_/schedules


@dataclass(frozen=True)
class OwnConfig:
    """What the user chose.

    Attributes:
        task: ``'detector'`` or ``'classifier'``.
        data: folder of the data.
        arch: path of an ``arch.json``, or a stock name.
        checkpoint: weights of the backbone; None = random.
        out: the config to write.
        model: detector: ``'retinanet'`` (boxes) or ``'mask-rcnn'`` (boxes and masks).
        train, val: names of the parts; None = found.
        epochs: None = 12 to 100, so that a training sees about 24,000 pictures.
        batch: pictures in a batch; None = as many as fit one GPU, at most 16 for a detector and 64 for a classifier.
        size: detector: height and width in pixels that pictures are made to fit; None = their own, at most 800x1333.
    """

    task: str
    data: Path
    arch: str
    checkpoint: str | None
    out: Path
    model: str = 'retinanet'
    train: str | None = None
    val: str | None = None
    epochs: int | None = None
    batch: int | None = None
    size: tuple[int, int] | None = None

    def write(self) -> tuple[OwnData, Config]:
        """Look at the data, write the config, and check it as training does; a config that fails is not written.

        Returns:
            What was found, and the config.

        Raises:
            FileNotFoundError: the data, the arch or the checkpoint does not exist.
            ValueError: the data are not clear or have faults; the message says what to do.
        """
        for what, path in (('data folder', self.data), ('checkpoint', self.checkpoint)):
            if path is not None and not Path(path).exists():
                raise FileNotFoundError(f'{what} {str(path)!r} does not exist; paths are relative to {Path.cwd()}.')
        for what, number in (('epochs', self.epochs), ('batch', self.batch)):
            if number is not None and number < 1:
                raise ValueError(f'{what} = {number}: must be at least 1.')
        arch, data = resolve_arch(self.arch), self._look()
        text = self._classifier(data, arch) if self.task == 'classifier' else self._detector(data, arch)
        cfg = Config.fromstring(text, '.py')
        check_datasets(cfg, ('train', 'val'))
        write_text_atomically(self.out, text)
        return data, cfg

    def _look(self) -> OwnData:
        chosen = dict(train=self.train, val=self.val)
        if self.task == 'classifier':
            return look_at_class_folders(self.data, **chosen)
        if voc := voc_root(self.data):
            return look_at_voc(voc, self.out.with_suffix(''), **chosen)
        return look_at_coco(self.data, **chosen)

    # ------------------------------------------------------------------------- parts

    def _bases(self, runtime: str, *names: str) -> str:
        lines = ''.join(f'\n    {name!r},' for name in (*names, '_base_/resumable.py'))
        return f"_base_ = ['{runtime}', *map(__import__('upvit_mm').config_path, [{lines}\n])]"

    def _backbone(self, arch: ArchSpec, **settings: Any) -> str:
        if self.checkpoint:
            settings['init_cfg'] = dict(type='Pretrained', checkpoint=self.checkpoint)
        return _call(type=f'upvit_mm.{arch.kind.backbone}', arch=self.arch, **settings)

    def _schedule(self, data: OwnData, batch: int, rate: float, step: str) -> str:
        """The learning rate is linear in the batch, as with ``--auto-scale-lr``; the warm-up is at most a tenth."""
        least, most = EPOCHS
        epochs = self.epochs or min(most, max(least, math.ceil(SEEN / data.train.pictures)))
        interval, steps = max(1, epochs // 12), math.ceil(data.train.pictures / batch)
        warm_up = max(1, min(500, steps * epochs // 10))
        return f"""train_cfg = dict(type='EpochBasedTrainLoop', max_epochs={epochs}, val_interval={interval})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end={warm_up}),
    {step.format(epochs=epochs, milestones=sorted({max(1, epochs * 2 // 3), max(1, epochs * 11 // 12)}))},
]
optim_wrapper = dict(optimizer=dict(lr={rate:g}))
auto_scale_lr = dict(base_batch_size={batch})  # for more GPUs: --auto-scale-lr
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2), logger=dict(interval={min(50, math.ceil(steps / 4))}))
"""

    # --------------------------------------------------------------------- detectors

    def _detector(self, data: OwnData, arch: ArchSpec) -> str:
        size = tuple(sorted(self.size)) if self.size else _within(data.size, LARGEST)
        batch = min(data.train.pictures, self.batch or max(1, min(LARGEST_BATCH, PIXELS // (size[0] * size[1]))))
        pyramid, masks = arch.kind.is_pyramid, self.model == 'mask-rcnn'
        bases = self._bases(
            'mmdet::_base_/default_runtime.py',
            f'_base_/models/{self.model}_up-{_base_of(arch)}.py',
            f'_base_/schedules/{self.model}_adamw_1x.py',
        )
        settings = {} if pyramid else dict(out_type='featmap')
        return f'''"""{_title(self.model, data)}"""

{bases}
data_root = {_folder(data.root)!r}
metainfo = dict(classes={data.classes!r})

model = dict(
    backbone={self._backbone(arch)},
    neck=dict(in_channels={map_widths(settings, arch)}),
{_heads(len(data.classes), data.most, masks)}
{_coco(data, size, batch, masks)}
{self._schedule(data, batch, RATES[self.model] * batch / 16, STEPS)}'''

    # ------------------------------------------------------------------- classifiers

    def _classifier(self, data: OwnData, arch: ArchSpec) -> str:
        side = min(CROPS[1], max(CROPS[0], round(data.size[0] / 32) * 32))
        batch = min(data.train.pictures, self.batch or 64)
        kind, number = 'deit' if arch.kind.reads_class_token else 'pvtv2', len(data.classes)
        bases = self._bases(
            'mmpretrain::_base_/default_runtime.py',
            f'_base_/models/up-{kind}_classifier.py',
            '_base_/schedules/demo_adamw.py',
        )
        return f'''"""{_title('classifier', data)}"""

{bases}
data_root = {_folder(data.root)!r}
model = dict(
    backbone={self._backbone(arch, drop_path_rate=0.1)},
    head=dict(num_classes={number}, in_channels={arch.embed_dims[-1]}))
data_preprocessor = dict(
    num_classes={number}, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

{_folders(data, side, batch)}
{self._schedule(data, batch, 5e-4 * batch / 64, COSINE)}'''


STEPS = "dict(type='MultiStepLR', begin=0, end={epochs}, by_epoch=True, milestones={milestones}, gamma=0.1)"
COSINE = "dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, convert_to_iter_based=True)"


def _base_of(arch: ArchSpec) -> str:
    """Backbone and neck in the name of a detector's base, which has the strides of its maps."""
    if arch.kind.is_pyramid:
        return 'pvtv2_fpn'
    return 'dinov2_sfp' if arch.patch_size == get_arch('dinov2-small').patch_size else 'deit_sfp'


def _title(model: str, data: OwnData) -> str:
    full = f'; up to {data.most} objects in a picture' if data.most else ''
    return (
        f'{model} on {data.root.name}: {len(data.classes)} classes, {data.train.pictures} training and '
        f'{data.val.pictures} validation pictures{full}.\n\nWritten by tools/init.py; change what you like.\n'
    )


def _coco(data: OwnData, size: tuple[int, int], batch: int, masks: bool) -> str:
    """Pipelines, data and metric of a detector."""
    kinds = ['bbox', 'segm'] if masks else 'bbox'
    return f"""train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='Resize', scale={size[::-1]}, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),  # leave it out where left and right differ
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale={size[::-1]}, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask={masks}),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size={batch},
    num_workers=2,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='CocoDataset', data_root=data_root, metainfo=metainfo, pipeline=train_pipeline,
        {_settings(data.train.settings)},
        filter_cfg=dict(filter_empty_gt=True)))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset', data_root=data_root, metainfo=metainfo, pipeline=test_pipeline, test_mode=True,
        {_settings(data.val.settings)}))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', metric={kinds!r},
    ann_file={str(Path(_folder(data.root), data.val.settings['ann_file']))!r})
test_evaluator = val_evaluator
"""


def _folders(data: OwnData, side: int, batch: int) -> str:
    """Pipelines, data and metric of a classifier."""
    return f"""train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale={side}, crop_ratio_range=(0.35, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),  # leave it out where left and right differ
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale={round(side * 8 / 7)}, edge='short'),
    dict(type='CenterCrop', crop_size={side}),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size={batch},
    num_workers=2,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root=data_root, pipeline=train_pipeline,
        {_settings(data.train.settings)}))
val_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root=data_root, pipeline=test_pipeline,
        {_settings(data.val.settings)}))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
"""


def _heads(classes: int, most: int, masks: bool) -> str:
    """Number of classes, and detections in a picture: more than the fullest picture has."""
    limit = max(COCO_LIMIT, math.ceil(most * HEAD_ROOM / 50) * 50)
    if not masks:
        return f'    bbox_head=dict(num_classes={classes}),\n    test_cfg=dict(max_per_img={limit}))'
    proposals = '' if limit <= 1000 else f'rpn=dict(nms_pre={2 * limit}, max_per_img={limit}), '
    heads = f'bbox_head=dict(num_classes={classes}), mask_head=dict(num_classes={classes})'
    return f'    roi_head=dict({heads}),\n    test_cfg=dict({proposals}rcnn=dict(max_per_img={limit})))'


def _within(size: tuple[int, int], largest: tuple[int, int]) -> tuple[int, int]:
    """``(shorter, longer)`` made smaller until it fits; small pictures are not made larger."""
    share = min(1.0, *(most / side for side, most in zip(size, largest)))
    return round(size[0] * share), round(size[1] * share)


def _folder(path: Path) -> str:
    return f'{path.as_posix().rstrip("/")}/'


def _call(**settings: Any) -> str:
    return f'dict({_settings(settings)})'


def _settings(settings: Mapping[str, Any]) -> str:
    return ', '.join(f'{k}={_call(**v) if isinstance(v, dict) else repr(v)}' for k, v in settings.items())
