"""Whole detectors and classifiers around tiny backbones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from upvit_mm.arch.family import FAMILIES

BACKBONES = {name: f'upvit_mm.{family.backbone}' for name, family in FAMILIES.items()}


@pytest.fixture
def detector(scope) -> Callable[..., nn.Module]:
    """``detector(family, arch, **settings of the backbone)``: mmdet's own RetinaNet around our backbone, narrow."""

    def make(family: str, arch: dict, **settings) -> nn.Module:
        from mmdet.registry import MODELS
        from mmengine.hub import get_config

        scope('mmdet')
        model = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
        model.backbone = dict(type=BACKBONES[family], arch=arch, **settings)
        if not FAMILIES[family].is_pyramid:
            model.neck = dict(type='upvit_mm.SimpleFeaturePyramid', in_channels=arch['embed_dims'], start_level=1)
        else:
            model.neck.in_channels = arch['embed_dims']
        model.neck.out_channels = model.bbox_head.in_channels = model.bbox_head.feat_channels = 16
        model.bbox_head.num_classes = 3
        model.bbox_head.stacked_convs = 1
        return MODELS.build(model)

    return make


@pytest.fixture
def classifier(scope) -> Callable[..., nn.Module]:
    """``classifier(family, arch, **settings of the backbone)``: an mmpretrain classifier of 7 classes."""

    def make(family: str, arch: dict, **settings) -> nn.Module:
        from mmpretrain.registry import MODELS

        scope('mmpretrain')
        pooled = dict(neck=dict(type='GlobalAveragePooling')) if FAMILIES[family].is_pyramid else {}
        if not FAMILIES[family].is_pyramid:
            settings = dict(out_type='cls_token') | settings
        return MODELS.build(
            dict(
                type='ImageClassifier',
                backbone=dict(type=BACKBONES[family], arch=arch, **settings),
                head=dict(type='LinearClsHead', num_classes=7, in_channels=arch['embed_dims'][-1]),
                **pooled,
            )
        )

    return make
