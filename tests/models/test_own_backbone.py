"""Backbones of mmdet and mmpretrain in detectors, and the settings of ours that compute the same."""

from __future__ import annotations

import pytest

from upvit_mm.models import UPPVTv2
from upvit_mm.models.own_backbone import own_backbone
from upvit_mm.registry import MODELS

PVT = dict(type='PyramidVisionTransformerV2', embed_dims=16, num_layers=[1, 1, 2, 1])
VIT = dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=64, out_type='featmap')

DINO_ARCH = dict(embed_dims=48, num_layers=2, num_heads=3, feedforward_channels=96)
DINO = VIT | dict(arch=DINO_ARCH, patch_size=14, img_size=56, layer_scale_init_value=1e-5)


@pytest.fixture(autouse=True)
def in_mmdet(scope):
    import mmpretrain.models  # noqa: F401

    scope('mmdet')


def test_settings_and_widths():
    found = own_backbone(PVT | dict(init_cfg=dict(type='Pretrained', checkpoint='x')))
    assert (found['type'], found['out_indices'], found['drop_path_rate']) == ('upvit_mm.UPPVTv2', (0, 1, 2, 3), 0.1)
    assert found['arch']['embed_dims'] == [16, 32, 80, 128]
    assert found['arch']['num_heads'] == [[1], [2], [5, 5], [8]]
    assert found['arch']['sr_ratios'] == [8, 4, 2, 1]
    assert 'init_cfg' not in found
    found = own_backbone(VIT | dict(out_indices=[3, 11], drop_path_rate=0.2))
    assert (found['type'], found['out_indices'], found['drop_path_rate']) == ('upvit_mm.UPDeiT', [3, 11], 0.2)
    assert (found['arch']['img_size'], found['arch']['patch_size'], found['arch']['num_heads'][0][0]) == (64, 16, 3)


@pytest.mark.parametrize('kind', ['MyPVT', 'mmdet.MyPVT'])
def test_a_users_subclass_stays(kind, tiny_arch):
    from mmdet.registry import MODELS as MMDET

    class MyPVT(UPPVTv2):
        pass

    MMDET.register_module(module=MyPVT, force=True)
    try:
        found = own_backbone(dict(type=kind, arch=tiny_arch('pvtv2'), out_indices=(1, 2)))
        assert found['type'] == 'mmdet.MyPVT'
        assert type(MODELS.build(found)) is MyPVT
    finally:
        MMDET.module_dict.pop('MyPVT')


@pytest.mark.parametrize(('theirs', 'ours'), [(-1, -1), (0, -1), (2, 2)])
def test_frozen_stages_of_mmpretrain(theirs, ours):
    """With 0 it freezes nothing, as with -1; ours freezes the embedding."""
    assert own_backbone(VIT | dict(frozen_stages=theirs))['frozen_stages'] == ours


@pytest.mark.parametrize(('ffn', 'name', 'hidden'), [('origin', 'gelu', 96), ('swiglu_fused', 'swiglu', 64)])
def test_dinov2_of_mmpretrain(ffn, name, hidden):
    """It is DeiT's class; the tensors show which it is."""
    found = own_backbone(DINO | dict(layer_cfgs=dict(ffn_type=ffn)))
    arch = found['arch']
    assert (found['type'], arch['family'], arch['patch_size'], arch['img_size']) == ('upvit_mm.UPViT', 'dinov2', 14, 56)
    assert (arch.get('ffn', 'gelu'), arch['mlp_hidden_dims'], arch['num_heads']) == (name, [[hidden] * 2], [[3, 3]])


def test_ours_stays(tiny_arch):
    settings = dict(type='upvit_mm.UPDeiT', arch=tiny_arch('deit'), window_size=7, init_cfg=dict(type='Pretrained'))
    found = own_backbone(settings)
    assert (found['type'], found['window_size'], found['arch']['qk_dims']) == (
        'upvit_mm.UPDeiT',
        7,
        tiny_arch('deit')['qk_dims'],
    )
    assert 'init_cfg' not in found


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(type='SwinTransformer'), r"type = 'SwinTransformer': cannot be pruned; known are upvit_mm\.UPDeiT"),
        (dict(type='upvit_mm.UPDeiT'), r'model\.backbone\.arch of upvit_mm\.UPDeiT: is missing'),
        (PVT | dict(act_cfg=dict(type='ReLU')), 'its maps differ by .*a setting is one that UPPVTv2 does not have'),
        (VIT | dict(out_type='cls_token'), "its outputs are no maps of the same shape; set out_type='featmap'"),
        (VIT | dict(pre_norm=True), r'does not convert: 2 tensor\(s\) have no place in a deit backbone .* pre_norm'),
        (DINO | dict(layer_cfgs=dict(act_cfg=dict(type='ReLU'))), 'its maps differ by .* that UPViT does not have'),
    ],
)
def test_what_computes_something_else_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        own_backbone(settings)
