"""Anchors and regions of detectors on plain ViTs lie where their maps say, for patches of 14 px as for 16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm.models import SimpleFeaturePyramid
from upvit_mm.models.map_strides import check_strides, pyramid_strides

ROOT = Path(__file__).parents[2]
ENTRIES = sorted(p for folder in ('demo', 'detection') for p in (ROOT / f'configs/{folder}').glob('*_sfp_*.py'))
RETINANET, MASK_RCNN, CASCADE = (
    ROOT / f'configs/detection/{kind}_up-dinov2-small_sfp_1x_coco.py'
    for kind in ('retinanet', 'mask-rcnn', 'cascade-mask-rcnn')
)


def anchors_of(model: Config):
    from mmdet.registry import TASK_UTILS

    head = model.get('rpn_head') or model.bbox_head
    return TASK_UTILS.build(head.anchor_generator)


@pytest.mark.parametrize('path', ENTRIES, ids=lambda path: path.stem)
def test_configs_have_the_strides_of_their_maps(path):
    check_strides(Config.fromfile(path))


@pytest.mark.parametrize(
    ('patch_size', 'start_level', 'num_outs', 'strides'),
    [
        (16, 0, 5, [4, 8, 16, 32, 64]),
        (14, 0, 5, [3.5, 7, 14, 28, 56]),
        (14, 1, 5, [7, 14, 28, 56, 112]),
        (8, 2, 1, [8]),
    ],
)
def test_strides_follow_the_patches(patch_size, start_level, num_outs, strides):
    assert pyramid_strides(patch_size, start_level, num_outs) == strides


@pytest.mark.parametrize('path', [RETINANET, MASK_RCNN, CASCADE], ids=lambda path: path.stem)
@pytest.mark.parametrize(('height', 'width'), [(84, 112), (70, 98)])
def test_anchors_are_centred_on_the_places_of_the_maps(path, height, width, scope):
    """By hand: the anchors of the place in row r and column c of a map of stride s have their centre at (c s, r s).

    The map has as many places as fit into the padded image, a partial one included.
    """
    scope('mmdet')
    model = Config.fromfile(path).model
    generator, settings = anchors_of(model), model.neck
    neck = SimpleFeaturePyramid(4, 4, settings.num_outs, settings.start_level)
    maps = neck([torch.randn(1, 4, height // 14, width // 14)])
    strides = [3.5 * 2 ** (level + settings.start_level) for level in range(5)]
    priors = generator.grid_priors([tuple(m.shape[2:]) for m in maps], device='cpu')
    for stride, grid, boxes in zip(strides, (m.shape[2:] for m in maps), priors):
        rows, columns = -(-height // stride), -(-width // stride)
        assert tuple(grid) == (rows, columns)
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).view(int(rows), int(columns), -1, 2)
        for row, column in ((0, 0), (0, int(columns) - 1), (int(rows) - 1, 0), (int(rows) // 2, int(columns) // 2)):
            expected = torch.tensor([column * stride, row * stride]).expand_as(centres[row, column])
            assert torch.allclose(centres[row, column], expected, atol=1e-4)
    square = (priors[0][:, 2:] - priors[0][:, :2]).prod(dim=1).sqrt()
    assert square.min().item() == pytest.approx((4 if path == RETINANET else 8) * strides[0], rel=1e-5)
    flags = generator.valid_flags([tuple(m.shape[2:]) for m in maps], (height, width), device='cpu')
    assert all(flag.all() for flag in flags)


@pytest.mark.parametrize('path', [MASK_RCNN, CASCADE], ids=lambda path: path.stem)
@pytest.mark.parametrize('part', ['bbox_roi_extractor', 'mask_roi_extractor'])
def test_regions_are_read_from_the_level_of_their_size(path, part, scope):
    """A map whose value is its own x or y in pixels gives, at the middle of a region, the middle's x and y.

    A region of side 98 * 2**k and more is read from level k + 1, where it has at least 14 places a side.
    """
    from mmdet.registry import MODELS

    scope('mmdet')
    extractor = MODELS.build(Config.fromfile(path).model.roi_head[part] | {'out_channels': 3})
    strides = [3.5, 7, 14, 28]
    maps = []
    for stride in strides:
        side = torch.arange(int(896 / stride)) * stride + stride / 2  # the centre of each place, in pixels
        y, x = torch.meshgrid(side, side, indexing='ij')
        maps.append(torch.stack([x, y, torch.full_like(x, stride)])[None])
    regions = torch.tensor([[0.0, 301, 205, 301 + side, 205 + side] for side in (60, 97, 99, 195, 197, 391, 393, 500)])
    levels = extractor.map_roi_levels(regions, 4)
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    out = extractor(maps, regions)  # (regions, 3, side, side)
    used = torch.tensor([strides[k] for k in levels])[:, None, None].expand_as(out[:, 2])
    torch.testing.assert_close(out[:, 2], used, rtol=1e-6, atol=0)
    middles = (regions[:, 1:3] + regions[:, 3:]) / 2
    torch.testing.assert_close(out[:, :2].mean(dim=(2, 3)), middles, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ('path', 'change', 'message'),
    [
        (
            RETINANET,
            {'bbox_head.anchor_generator.strides': [8, 16, 32, 64, 128]},
            r'model\.bbox_head\.anchor_generator\.strides = \[8, 16, 32, 64, 128\]: the maps of a backbone with '
            r'patches of 14 pixels have the strides \[7, 14, 28, 56, 112\]; write \[7, 14, 28, 56, 112\]',
        ),
        (
            MASK_RCNN,
            {'roi_head.mask_roi_extractor.featmap_strides': [4, 8, 16, 32]},
            r'mask_roi_extractor\.featmap_strides = \[4, .*; write \[3\.5, 7, 14, 28\]',
        ),
        (MASK_RCNN, {'neck.start_level': 1}, r'rpn_head\.anchor_generator\.strides = \[3\.5, .*; write \[7, 14'),
        (CASCADE, {'backbone.arch': 'dinov3-small'}, r'patches of 16 pixels have the strides \[4, 8, 16, 32, 64\]'),
    ],
)
def test_other_strides_are_refused(path, change, message):
    cfg = Config.fromfile(path)
    if 'backbone.arch' in change:
        cfg.model.backbone.pop('arch')
    cfg.merge_from_dict({f'model.{key}': value for key, value in change.items()})
    with pytest.raises(ValueError, match=message):
        check_strides(cfg)


def test_other_models_pass():
    check_strides({})
    check_strides({'model': {'backbone': {'type': 'upvit_mm.UPViT'}, 'neck': [{'type': 'FPN'}]}})
    pyramid = dict(type='FPN', in_channels=[8])
    check_strides({'model': {'backbone': dict(type='upvit_mm.UPViT', arch='dinov2-small'), 'neck': pyramid}})
