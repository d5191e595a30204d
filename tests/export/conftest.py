"""Configs and checkpoints of tiny networks with pruned widths, as a user has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.family import FAMILIES
from upvit_mm.registry import MODELS

ROOT = Path(__file__).parents[2]
VITS = ('deit', 'dinov2', 'dinov3')
CLASSIFIERS = dict.fromkeys(VITS, 'configs/demo/up-deit-micro_digits.py')
CLASSIFIERS['pvtv2'] = 'configs/demo/up-pvtv2-micro_digits.py'
# windows and a simple feature pyramid; FPN with extra convolutions
DETECTORS = dict.fromkeys(VITS, 'configs/detection/mask-rcnn_up-deit-small_sfp_1x_coco.py')
DETECTORS['pvtv2'] = 'configs/detection/retinanet_up-pvtv2-b0_fpn_1x_coco.py'


class Files(NamedTuple):
    """A network of random weights and what ``load_part`` wants to know of it."""

    model: nn.Module
    config: str
    checkpoint: str
    options: dict


@pytest.fixture
def save(family, tiny_arch, randomise, scope, tmp_path) -> Callable[..., Files]:
    """``save(config, *parts, **options)``: those parts of a config's model with the family's tiny arch, saved."""

    def make(config: str, *parts: str, **options) -> Files:
        arch = ArchSpec.from_dict(tiny_arch(family)).save_json(tmp_path / 'arch.json')
        kind = f'upvit_mm.{FAMILIES[family].backbone}'
        options = {'model.backbone.type': kind, 'model.backbone.arch': str(arch), **options}
        cfg = Config.fromfile(ROOT / config)
        cfg.merge_from_dict(options)
        scope(cfg.default_scope)
        model = nn.Module() if parts else MODELS.build(cfg.model)
        for part in parts:
            setattr(model, part, MODELS.build(cfg.model[part]))
        torch.save({'state_dict': randomise(model).state_dict()}, tmp_path / 'model.pth')
        return Files(model.eval(), str(ROOT / config), str(tmp_path / 'model.pth'), options)

    return make


@pytest.fixture
def detector(family, tiny_arch, save) -> Files:
    """Backbone and neck of a detector."""
    widths = tiny_arch(family)['embed_dims']
    window = {'model.backbone.window_size': 4, 'model.backbone.global_blocks': (1, 4)} if family in VITS else {}
    return save(DETECTORS[family], 'backbone', 'neck', **{'model.neck.in_channels': widths}, **window)


@pytest.fixture
def classifier(family, tiny_arch, save) -> Files:
    """A whole classifier."""
    return save(CLASSIFIERS[family], **{'model.head.in_channels': tiny_arch(family)['embed_dims'][-1]})
