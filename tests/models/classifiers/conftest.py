"""A student and its teacher around tiny backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning import PrunePlan, make_plan

BACKBONES = {'deit': 'upvit_mm.UPDeiT', 'pvtv2': 'upvit_mm.UPPVTv2'}
TERMS = {'soft': 'upvit_mm.SoftTargetKL', 'feature': 'upvit_mm.FeatureMSE', 'token': 'upvit_mm.TokenMSE'}


@pytest.fixture
def terms() -> Callable[..., dict]:
    """``terms(*names, **settings)``: config of distillation, by default of every term; settings are for the MSEs."""

    def make(*names: str, **settings) -> dict:
        return {name: dict(type=TERMS[name]) | (settings if name != 'soft' else {}) for name in names or TERMS}

    return make


@pytest.fixture
def pixels() -> dict:
    """Settings of a ``ClsDataPreprocessor``."""
    return dict(mean=[120.0, 115.0, 100.0], std=[58.0, 57.0, 56.0], to_rgb=True)


@pytest.fixture
def samples() -> Callable[[int], list]:
    """``samples(count)``: data samples with labels 0, 1, ..."""
    from mmpretrain.structures import DataSample

    return lambda count: [DataSample().set_gt_label(k % 7) for k in range(count)]


@pytest.fixture
def batch(image, samples) -> Callable[[], dict]:
    """``batch()``: four images with labels, as a data loader gives them."""

    def make() -> dict:
        raw = (image(64, 64, batch=4) * 60 + 128).clamp(0, 255).to(torch.uint8)
        return dict(inputs=list(raw), data_samples=samples(4))

    return make


@pytest.fixture
def network(family) -> Callable[..., dict]:
    """``network(arch, num_classes=7)``: backbone, neck and head of a classifier, as a config."""

    def make(arch: dict, num_classes: int = 7) -> dict:
        settings = dict(out_type='cls_token') if family == 'deit' else dict(out_indices=(3,))
        return dict(
            backbone=dict(type=BACKBONES[family], arch=arch, **settings),
            neck=None if family == 'deit' else dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=arch['embed_dims'][-1]),
        )

    return make


@pytest.fixture
def dense_path(tmp_path) -> Path:
    """Where ``dense`` is saved."""
    return tmp_path / 'dense.pth'


@pytest.fixture
def dense(family, tiny_arch, classifier, randomise, dense_path) -> nn.Module:
    """The teacher as a plain classifier of its own."""
    model = randomise(classifier(family, tiny_arch(family))).eval()
    torch.save({'state_dict': model.state_dict()}, dense_path)
    return model


@pytest.fixture
def plan_path(tmp_path) -> Path:
    """Where ``plan`` is saved."""
    return tmp_path / 'plan.json'


@pytest.fixture
def plan(family, tiny_arch, plan_path) -> PrunePlan:
    """Channels 1, 3, ... of the last embedding stay."""
    source = ArchSpec.from_dict(tiny_arch(family))
    last = f'stages.{source.num_stages - 1}.embed'
    plan = make_plan(source, {last: range(1, source.embed_dims[-1], 2)}, name='half')
    plan.save(plan_path)
    return plan


@pytest.fixture
def distil(family, tiny_arch, network, dense, dense_path, randomise) -> Callable[..., nn.Module]:
    """``distil(distill, arch, teacher=changes or None, **settings)``: a ``DistillClassifier``, the student random."""

    def make(distill: dict, arch: dict | None = None, teacher=(), **settings) -> nn.Module:
        from mmpretrain.registry import MODELS

        arch = tiny_arch(family) if arch is None else arch
        if teacher is not None:
            teacher = network(tiny_arch(family)) | dict(checkpoint=str(dense_path)) | dict(teacher)
        config = network(arch) | dict(teacher=teacher, distill=distill) | settings
        return randomise(MODELS.build(dict(type='upvit_mm.DistillClassifier', **config)), seed=3)

    return make
