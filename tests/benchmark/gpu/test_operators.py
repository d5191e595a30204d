"""torchvision's operators in the place of mmcv's give mmcv's numbers."""

from __future__ import annotations

import sys

import pytest
import torch
from mmcv.ops import RoIAlign
from mmcv.ops import nms as mmcv_nms
from mmcv.ops.focal_loss import SigmoidFocalLoss
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

from upvit_mm.benchmark.gpu import operators


@pytest.fixture
def replaced(monkeypatch):
    """``replaced()``: from now on mmcv's functions call torchvision's."""

    def replace():
        for name in ('nms', 'roi_align', 'focal_loss'):
            monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', operators.make_module())

    return replace


@pytest.fixture
def boxes():
    corners = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * 40
    return torch.cat([corners, corners + 4 + corners.flip(1) / 2], dim=1)


@pytest.mark.parametrize('offset', [0, 1])
def test_nms(replaced, boxes, offset):
    scores = torch.linspace(0.1, 0.9, 60)
    kept = mmcv_nms(boxes, scores, 0.3, offset)[1]
    replaced()
    assert 5 < len(kept) < 55
    assert torch.equal(mmcv_nms(boxes, scores, 0.3, offset)[1], kept)


@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align(replaced, boxes, ratio):
    rois = torch.cat([torch.arange(60)[:, None] % 2, boxes], dim=1)
    layer, results = RoIAlign(7, spatial_scale=0.5, sampling_ratio=ratio), []
    for act in (lambda: None, replaced):
        act()
        maps = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
        regions = layer(maps, rois)
        (regions * torch.linspace(-1, 1, regions.numel()).view_as(regions)).sum().backward()
        results.append((regions, maps.grad))
    for found, expected in zip(*results):
        assert torch.allclose(found, expected, atol=1e-6)


def test_focal_loss(replaced):
    replaced()
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float32)
    target = torch.arange(50) % 5  # 4 is background
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = SigmoidFocalLoss(2.0, 0.25, reduction='sum')(ours, target)
    onehot = torch.nn.functional.one_hot(target, 5)[:, :4]
    expected = py_sigmoid_focal_loss(theirs, onehot, gamma=2.0, alpha=0.25, reduction='sum')
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_mmcv_keeps_its_own_where_they_run():
    before = sys.modules['mmcv._ext']
    assert operators.replace_missing('cpu') is None
    assert sys.modules['mmcv._ext'] is before


def test_without_its_own_mmcv_gets_them(monkeypatch):
    monkeypatch.setattr(operators, '_runs', lambda device: False)
    monkeypatch.setitem(sys.modules, 'mmcv._ext', sys.modules['mmcv._ext'])
    monkeypatch.setattr('mmcv._ext', None)
    assert operators.replace_missing('cpu').endswith('NMS, RoIAlign and the focal loss are those of torchvision.')
    assert sys.modules['mmcv._ext'].nms is operators.nms
    with pytest.raises(NotImplementedError, match='soft_nms: only NMS, RoIAlign and the focal loss are replaced'):
        sys.modules['mmcv._ext'].soft_nms()
