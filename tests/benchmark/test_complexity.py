"""Counted costs against torch's own counter, sums over parts, and detectors against counts by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.arch.family import FAMILIES
from upvit_mm.arch.size import Windows
from upvit_mm.benchmark.complexity import by_kind, count, measure_arch, measure_config, tables_of, traced_detector
from upvit_mm.benchmark.complexity import traced_macs as traced
from upvit_mm.pruning.costs import count_macs, count_params, mac_terms, widths_of
from upvit_mm.workflow.whole_detector import build_detector

ROOT = Path(__file__).parents[2]
SIZES = [(64, 64), (96, 160), (101, 75), (800, 1333)]


def plain_attention(q, k, v, scale, mask=None):
    """What pruned widths cost where no kernel wants both of one width; a mask costs nothing."""
    return (scale * q @ k.transpose(-2, -1)).softmax(-1) @ v


@pytest.fixture
def unpadded(monkeypatch):
    for module in ('attention', 'windows'):
        monkeypatch.setattr(f'upvit_mm.models.layers.{module}.scaled_attention', plain_attention)


ALL = pytest.mark.parametrize('family', list(FAMILIES))


@ALL
@pytest.mark.parametrize('size', SIZES)
def test_free_widths(family, build, unpadded, size):
    backbone = build(family)
    assert traced(backbone, torch.empty(1, 3, *size)) == count_macs(backbone.arch, size)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('blocks', [None, (1, -1), ()])
def test_free_widths_in_windows(build, unpadded, size, blocks):
    windows = Windows(3, blocks)
    backbone = build('deit', **windows.settings)
    assert traced(backbone, torch.empty(1, 3, *size)) == count_macs(backbone.arch, size, windows=windows)


def test_the_fused_kernel_computes_zeros_too(family, build):
    backbone, size = build(family), (96, 160)
    widths = widths_of(backbone.arch)
    filled = 0
    for term in mac_terms(backbone.arch, size):
        if term.module.endswith('.attn') and term.dims[0].endswith('.qk'):
            filled += term.factor * abs(widths[term.dims[0]] - widths[term.dims[0].replace('.qk', '.v')])
    assert filled > 0
    assert traced(backbone, torch.empty(1, 3, *size)) == count_macs(backbone.arch, size) + filled


@pytest.mark.parametrize('name', ['deit-tiny', 'pvtv2-b0'])
def test_stock_networks_at_the_size_of_a_detector(name):
    (costs,) = measure_arch(get_arch(name), [(800, 1333)])['sizes'].values()
    assert costs['counted'].macs == costs['traced_backbone_macs']


def test_tracing_leaves_the_model_as_it_is(build, image):
    model = build('deit')
    before, x = model(image(64, 80)), image(64, 80)
    traced(model, x)
    assert all(torch.equal(a, b) for a, b in zip(before, model(x)))


@ALL
def test_parts_add_up(family, tiny_arch):
    arch = ArchSpec.from_dict(tiny_arch(family))
    root = count(arch, (64, 96), num_classes=7)
    assert (root.macs, root.params) == (count_macs(arch, (64, 96), 7), count_params(arch, 7))
    walked = list(root.walk(4))
    assert {level for level, _ in walked} == {0, 1, 2, 3, 4}
    for _, part in walked:
        assert list(part.parts) == [inner.name for inner in part.parts.values()]
        if part.parts:
            for kind in ('macs', 'params'):
                assert getattr(part, kind) == sum(getattr(inner, kind) for inner in part.parts.values())
    for name in ('norms', 'norm', 'attn.sr_norm', 'cls_token', 'pos_embed'):
        assert not any(part.macs for _, part in walked if part.name == name)
    assert [level for level, _ in root.walk(1)] == [0] + [1] * len(root.parts)

    kinds = by_kind(root)
    assert (kinds.macs, kinds.params) == (root.macs, root.params)
    assert {part.name: part.macs for part in kinds.parts.values()}.items() >= {
        ('attention products', sum(part.macs for _, part in walked if part.name == 'attention products')),
        ('head', 7 * arch.embed_dims[-1]),
        ('norms', 0),
    }


def test_one_block_by_hand(tiny_arch):
    """Block 1 of stage 2: 4 x 6 tokens, 2 x 3 after reduction, C = 35, K = 9, V = 33, F = 21."""
    root = count(ArchSpec.from_dict(tiny_arch('pvtv2')), (64, 96))
    block = root.parts['stage 2'].parts['block 1']
    assert {name: (part.macs, part.params) for name, part in block.parts.items()} == {
        'attention projections': (
            24 * 35 * 9 + 6 * 35 * (9 + 33) + 24 * 33 * 35,
            2 * 36 * 9 + 36 * 33 + 34 * 35,
        ),
        'attention products': (24 * 6 * (9 + 33), 0),
        'spatial reduction': (6 * 4 * 35 * 35, 4 * 35 * 35 + 35 + 70),
        'ffn': (24 * 21 * (35 + 9 + 35), 36 * 21 + 10 * 21 + 22 * 35),
        'norms': (0, 140),
    }
    assert root.parts['stage 2'].parts['patch embedding'].macs == 24 * 9 * 24 * 35


def test_record_and_tables(tiny_arch):
    arch = ArchSpec.from_dict(tiny_arch('deit'))
    record = measure_arch(arch, [(64, 64), (64, 96)], 7, windows=Windows(2, (0,)))
    saved = json.loads(json.dumps(record, default=asdict))
    assert saved.keys() == {'arch', 'num_classes', 'layout', 'sizes'}
    assert saved['layout'] == {'window_size': 2, 'global_blocks': [0]}
    assert list(saved['sizes']) == ['64x64', '64x96']
    assert saved['sizes']['64x96'].keys() == {'counted', 'traced_backbone_macs'}
    assert saved['sizes']['64x96']['counted'].keys() == {'name', 'macs', 'params', 'parts'}

    (title, header, rows), (_, _, kinds) = tables_of(record, 1)
    assert title.startswith('tiny-deit, counted (backbone traced by torch: ')
    assert header == ['part', 'M params', '%', 'M MACs at 64x64', '%', 'M MACs at 64x96', '%']
    assert [row[0] for row in rows] == ['total', '  stage 0', '  head']
    counted = [costs['counted'] for costs in record['sizes'].values()]
    for row, parts in zip(rows, zip(*(root.walk(1) for root in counted))):
        for cells, root, (_, part) in zip((row[3:5], row[5:]), counted, parts):
            assert cells == [f'{part.macs / 1e6:,.3f}', f'{100 * part.macs / root.macs:.1f}']
    assert rows[2][1:3] == [f'{46 * 7 / 1e6:.3f}', f'{100 * 46 * 7 / counted[0].params:.1f}']
    assert sum(float(row[4]) for row in kinds[1:]) == pytest.approx(100, abs=0.5)


# ------------------------------------------------------------------ from configs


def backbone_config(**settings) -> Config:
    backbone = dict(type='upvit_mm.UPDeiT', **settings)
    return Config(dict(default_scope='mmpretrain', model=dict(backbone=backbone, head=dict(num_classes=7))))


def test_config_of_a_classifier(tiny_arch):
    cfg = backbone_config(arch=tiny_arch('deit'), window_size=2, global_blocks=[0], out_type='cls_token')
    record = measure_config(cfg, [(64, 96)])
    (costs,) = record['sizes'].values()
    arch = ArchSpec.from_dict(tiny_arch('deit'))
    assert costs['counted'].macs == count_macs(arch, (64, 96), 7, windows=Windows(2, (0,)))
    assert 'detector' not in costs


def test_other_backbones_are_refused():
    cfg = backbone_config(arch='deit-tiny')
    cfg.model.backbone.type = 'ResNet'
    with pytest.raises(ValueError, match=r"model\.backbone\.type = 'ResNet': must be one of upvit_mm"):
        measure_config(cfg, [(64, 64)])
    with pytest.raises(ValueError, match=r"arch family = 'pvtv2'"):
        measure_config(backbone_config(arch='pvtv2-b0'), [(64, 64)])


@pytest.fixture
def demo(scope):
    """``demo(name)``: the config of one of the demo's detectors."""
    scope('mmdet')
    return lambda name: Config.fromfile(ROOT / f'configs/demo/{name}_digits.py')


def macs_and_params(in_channels: int, out_channels: int, kernel: int, places: int) -> tuple[int, int]:
    weights = in_channels * out_channels * kernel**2
    return weights * places, weights + out_channels


def add(*layers: tuple[int, int]) -> tuple[int, int]:
    return sum(macs for macs, _ in layers), sum(params for _, params in layers)


def test_retinanet(demo):
    """The demo's head: 2 convolutions in each branch, 3 levels, 9 anchors, 10 classes."""
    (costs,) = measure_config(demo('retinanet_up-pvtv2-micro_fpn'), [(96, 128)])['sizes'].values()
    detector = costs['detector']
    assert list(detector.parts) == ['backbone', 'neck', 'bbox_head']
    assert detector.parts['backbone'].macs == costs['counted'].macs == costs['traced_backbone_macs']
    assert detector.parts['backbone'].params == costs['counted'].params
    cells = sum(-(-96 // stride) * -(-128 // stride) for stride in (8, 16, 32))
    conv = macs_and_params(64, 64, 3, cells)
    head = add(*[conv] * 4, macs_and_params(64, 9 * 10, 3, cells), macs_and_params(64, 9 * 4, 3, cells))
    assert (detector.parts['bbox_head'].macs, detector.parts['bbox_head'].params) == head
    assert detector.macs == sum(part.macs for part in detector.parts.values())


def test_mask_rcnn(demo):
    """The heads on regions cost what the most regions that pass cost, at any size."""
    model = build_detector(demo('mask-rcnn_up-deit-micro_sfp'))
    detector = traced_detector(model, (64, 64))
    boxes, masks = 'roi_head.bbox_head (100 regions)', 'roi_head.mask_head (100 regions)'
    assert list(detector.parts) == ['backbone', 'neck', 'rpn_head', boxes, masks]
    assert detector.params == sum(p.numel() for p in model.parameters())
    dense = [(64 * 49, 256), (256, 256), (256, 11), (256, 40)]
    assert detector.parts[boxes].macs == 100 * sum(a * b for a, b in dense)
    conv, wide = macs_and_params(64, 64, 3, 14**2), macs_and_params(64, 10, 1, 28**2)
    upsample = (64 * 64 * 4 * 14**2, 4 * 64 * 64 + 64)
    macs, params = add(conv, conv, upsample, wide)
    assert (detector.parts[masks].macs, detector.parts[masks].params) == (100 * macs, params)
    larger = traced_detector(model, (128, 128))
    assert larger.parts[boxes].macs == detector.parts[boxes].macs
    assert larger.parts['rpn_head'].macs == 4 * detector.parts['rpn_head'].macs


class OnlyNumbers(nn.Linear):
    """Like an operator of mmcv without a meta device."""

    def forward(self, maps):
        raise NotImplementedError


def test_what_cannot_be_traced_says_so(demo):
    model = build_detector(demo('retinanet_up-pvtv2-micro_fpn'))
    model.extra = nn.Linear(3, 4)
    model.neck = OnlyNumbers(5, 1)
    detector = traced_detector(model, (64, 64))
    assert {name: part.params for name, part in detector.parts.items() if not part.macs} == {
        'neck (MACs not traced)': 6,
        'bbox_head (MACs not traced)': sum(p.numel() for p in model.bbox_head.parameters()),
        'extra (MACs not traced)': 16,
    }
    assert detector.parts['backbone'].macs == detector.macs > 0
