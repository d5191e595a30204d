"""Whole training steps of detectors, from pictures to new weights, with our backbone and mmdet's."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Size
from upvit_mm.benchmark.gpu.notebook import Notebook
from upvit_mm.benchmark.gpu.setting import Setting
from upvit_mm.benchmark.gpu.timing import time_variants
from upvit_mm.benchmark.rivals import mmdet_pvtv2_settings, rivals_of
from upvit_mm.installed import config_path
from upvit_mm.stopwatch import SEED
from upvit_mm.workflow.whole_detector import build_detector

OBJECTS = 7  # in a picture, about as many as in COCO


def measure_detectors(setting: Setting, device: str, notebook: Notebook) -> None:
    """Time a training step on made pictures that are on the device already; on a GPU as with ``--amp``, in fp16."""
    for name, batch in setting.detectors:
        cfg = Config.fromfile(config_path(name))
        arch = ArchSpec.from_dict(cfg.model.backbone.arch)
        configs = {'ours': cfg}
        if 'mmdet' in rivals_of(arch.family):
            configs['mmdet'] = with_mmdet_backbone(cfg, arch)
        steps = {variant: _step(config, setting.size, batch, device) for variant, config in configs.items()}
        network = f'{cfg.model.type.removeprefix("mmdet.")} {arch.name}'
        precision = 'fp16' if device == 'cuda' else 'fp32'
        labels = {'work': 'detector training', 'network': network, 'batch': batch, 'precision': precision}
        time_variants(notebook, steps, max(2, setting.repeats // 2), device, **labels)


def with_mmdet_backbone(cfg: Config, arch: ArchSpec) -> Config:
    """The config with mmdet's PVTv2 of the same architecture; neck and heads stay."""
    cfg, ours = cfg.copy(), cfg.model.backbone
    rate = ours.get('drop_path_rate', 0.0)
    cfg.model.backbone = dict(
        type='mmdet.PyramidVisionTransformerV2', drop_path_rate=rate, **mmdet_pvtv2_settings(arch)
    )
    return cfg


def _step(cfg: Config, size: Size, batch: int, device: str) -> partial:
    torch.manual_seed(SEED)
    detector = build_detector(cfg).to(device).train()
    settings = cfg.optim_wrapper.copy()
    if device == 'cuda':
        settings |= dict(type='AmpOptimWrapper', loss_scale='dynamic')
    optimizer: OptimWrapper = build_optim_wrapper(detector, settings)
    return partial(detector.train_step, made_batch(size, batch, classes_of(detector), device), optimizer)


def classes_of(detector: nn.Module) -> int:
    """Classes of a detector of one or of two stages."""
    return getattr(detector, 'roi_head', detector).bbox_head.num_classes


def made_batch(size: Size, batch: int, classes: int, device: str) -> dict[str, Any]:
    """Random pictures with random boxes, full masks and labels, as mmdet's pipeline gives them.

    Args:
        size: ``(height, width)`` in pixels.
        batch: number of pictures.
        classes: labels are below it.
        device: where the pictures and boxes are.
    """
    rng = np.random.default_rng(SEED)
    pictures = torch.from_numpy(rng.integers(0, 256, (batch, 3, *size), dtype=np.uint8)).to(device)
    return {'inputs': list(pictures), 'data_samples': [_made_sample(size, classes, rng).to(device) for _ in pictures]}


def _made_sample(size: Size, classes: int, rng: np.random.Generator) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size
    sides = np.stack([rng.uniform(side / 16, side / 2, OBJECTS) for side in (width, height)], axis=1)
    corners = rng.uniform(0, 1, (OBJECTS, 2)) * (np.array([width, height]) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    masks = np.zeros((OBJECTS, height, width), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
        mask[top:bottom, left:right] = 1
    labels = torch.from_numpy(rng.integers(0, classes, OBJECTS))
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), size)
    sample = DetDataSample(metainfo={**shapes, 'scale_factor': (1.0, 1.0)})
    sample.gt_instances = InstanceData(
        bboxes=torch.from_numpy(boxes), labels=labels, masks=BitmapMasks(masks, height, width)
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample
