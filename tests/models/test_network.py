"""Backbones of configs and checkpoints of either framework, and their preprocessing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Windows
from upvit_mm.compare.token_dropping import drop_tokens
from upvit_mm.consistency import compare
from upvit_mm.data.image_files import ImageFiles
from upvit_mm.models.network import Colours, load_network
from upvit_mm.pruning.costs import count_macs

ROOT = Path(__file__).parents[2]
CLASSIFIERS = {'deit': 'configs/demo/up-deit-micro_digits.py', 'pvtv2': 'configs/demo/up-pvtv2-micro_digits.py'}
DETECTORS = {
    'deit': 'configs/demo/retinanet_up-deit-micro_sfp_digits.py',
    'pvtv2': 'configs/demo/mask-rcnn_up-pvtv2-micro_fpn_digits.py',
}


@pytest.fixture
def tiny(family, build, tmp_path):
    """A tiny backbone, ``{'arch': its arch.json, 'checkpoint': its file}``, under a detector's names."""
    backbone = build(family)
    arch = backbone.arch.save_json(tmp_path / 'arch.json')
    state = {f'backbone.{k}': v for k, v in backbone.state_dict().items()} | {'neck.weight': torch.ones(3)}
    torch.save({'state_dict': state}, tmp_path / 'model.pth')
    return backbone, {'arch': str(arch), 'checkpoint': str(tmp_path / 'model.pth')}


@pytest.mark.parametrize('configs', [CLASSIFIERS, DETECTORS])
def test_classifiers_and_detectors(family, configs, tiny, distance):
    backbone, files = tiny
    network = load_network(ROOT / configs[family], **files)
    assert not network.backbone.training
    assert network.arch == backbone.arch
    assert network.record['checkpoint'] == files['checkpoint']
    assert len(network.record['sha256']) == 64
    last = (backbone.arch.depths[0] - 1,) if family == 'deit' else (3,)
    pixels = torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8)
    with torch.no_grad():
        expected = backbone(network.colours.apply(pixels))
    assert distance(network.maps(pixels, last)[-1], expected[-1]) < 1e-5


def test_options_change_the_config(tiny, family):
    _, files = tiny
    arch = files.pop('arch')
    options = {'model.backbone.arch': arch, 'data_preprocessor.to_rgb': False}
    network = load_network(ROOT / CLASSIFIERS[family], options=options, **files)
    assert network.arch == ArchSpec.from_json(arch)
    assert not network.colours.flip


@pytest.mark.parametrize('name', ['timm-deit', 'mmpretrain-deit', 'timm-pvtv2', 'mmdet-pvtv2'])
def test_foreign_checkpoints(name, tiny_source, stock_arch, tmp_path, distance):
    source = tiny_source(name)
    ArchSpec.from_dict(stock_arch(source.family)).save_json(tmp_path / 'arch.json')
    torch.save(source.state | source.head, tmp_path / 'foreign.pth')
    config = ROOT / CLASSIFIERS[source.family]
    network = load_network(config, str(tmp_path / 'foreign.pth'), arch=str(tmp_path / 'arch.json'))
    out = (network.arch.depths[0] - 1,) if source.family == 'deit' else (0, 1, 2, 3)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    for a, b in zip(network.maps(pixels, out), source.features(network.colours.apply(pixels).double())):
        assert distance(a.double(), b) < 1e-4


@pytest.mark.parametrize('configs', [CLASSIFIERS, DETECTORS])
def test_colours_are_those_of_the_framework(configs, scope):
    cfg = Config.fromfile(ROOT / configs['pvtv2'])
    scope(cfg.default_scope)
    from mmengine.registry import MODELS

    kind = {'mmdet': 'mmdet.DetDataPreprocessor', 'mmpretrain': 'mmpretrain.ClsDataPreprocessor'}[cfg.default_scope]
    settings = dict(cfg.model.get('data_preprocessor') or cfg.data_preprocessor)
    preprocessor = MODELS.build({**settings, 'type': kind})
    pixels = torch.randint(0, 256, (3, 32, 64), dtype=torch.uint8)
    expected = preprocessor({'inputs': [pixels], 'data_samples': None}, False)['inputs']
    assert torch.allclose(Colours.of_config(cfg).apply(pixels[None]), expected, atol=1e-5)


def test_without_preprocessing_pixels_stay():
    pixels = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(Colours.of_config(Config(dict(model=dict()))).apply(pixels), pixels.float())


def test_macs_know_windows_and_dropped_tokens(pair, family, build):
    size = (160, 224)
    assert pair.dense.macs(size) == count_macs(pair.dense.arch, size)
    dropping = drop_tokens(pair.dense, 0.5)
    assert dropping.macs(size) == dropping.backbone.macs(size) < pair.dense.macs(size)
    if family == 'deit':
        windowed = replace(pair.dense, backbone=build(family, window_size=3, global_blocks=(1,)))
        assert windowed.macs(size) == count_macs(pair.dense.arch, size, windows=Windows(3, (1,)))


def test_mistakes(tmp_path, tiny, family):
    _, files = tiny
    with pytest.raises(FileNotFoundError, match=r"config 'no.py' does not exist"):
        load_network('no.py', files['checkpoint'])
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'no.pth' does not exist"):
        load_network(ROOT / CLASSIFIERS[family], 'no.pth')
    with pytest.raises(ValueError, match='checkpoint does not fit UP'):
        load_network(ROOT / CLASSIFIERS[family], files['checkpoint'])
    for kind, hint in (
        ('PyramidVisionTransformerV2', r"Put backbone=dict\(type='upvit_mm.UPPVTv2'.*the checkpoint loads as it is"),
        ('mmpretrain.VisionTransformer', r"Put backbone=dict\(type='upvit_mm.UPDeiT'"),
        (
            'ResNet',
            'must be a backbone of this package. Known are upvit_mm.UPDeiT, upvit_mm.UPViT, upvit_mm.UPPVTv2, and ',
        ),
    ):
        with pytest.raises(ValueError, match=hint):
            load_network(Config(dict(model=dict(backbone=dict(type=kind)))), files['checkpoint'])
    for content in (dict(), dict(model=dict(type='X'))):
        with pytest.raises(ValueError, match=r'has no model.backbone'):
            load_network(Config(content), files['checkpoint'])


def test_dense_and_pruned_may_differ_in_preprocessing(pair, images: ImageFiles):
    """Each sees the pictures as its own config has them."""
    backbone = pair.dense.backbone
    scaled = replace(pair.dense, colours=Colours((0.0,), (255.0,), False))
    same = compare(pair.dense, replace(pair.dense, backbone=backbone), images, [(64, 64)])
    other = compare(pair.dense, scaled, images, [(64, 64)])
    label = list(same['64x64'])[-1]
    assert same['64x64'][label]['cka'] == pytest.approx(1)
    assert other['64x64'][label]['cka'] < 0.999
