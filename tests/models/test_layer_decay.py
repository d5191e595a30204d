"""Layer-wise learning rates in detectors of mmdet and classifiers of mmpretrain: the number of every parameter."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from torch import nn

from upvit_mm.optim import check_constructor

TYPE = 'upvit_mm.LayerDecayOptimWrapperConstructor'
BACKBONES = {'deit': 'upvit_mm.UPDeiT', 'pvtv2': 'upvit_mm.UPPVTv2'}
# the depth of each part
DEPTHS = {
    'deit': {  # 5 blocks
        'cls_token': 0,
        'pos_embed': 0,
        'stages.0.patch_embed.': 0,
        **{f'stages.0.blocks.{j}.': 1 + j for j in range(5)},
        'stages.0.norm.': 5,
    },
    'pvtv2': {  # 1, 2, 2 and 1 blocks
        'stages.0.patch_embed.': 0,
        'stages.0.blocks.0.': 1,
        'stages.0.norm.': 1,
        'stages.1.patch_embed.': 2,
        'stages.1.blocks.0.': 2,
        'stages.1.blocks.1.': 3,
        'stages.1.norm.': 3,
        'stages.2.patch_embed.': 4,
        'stages.2.blocks.0.': 4,
        'stages.2.blocks.1.': 5,
        'stages.2.norm.': 5,
        'stages.3.': 6,
    },
}
LAST = {'deit': 6, 'pvtv2': 7}  # the depth of what comes after the backbone


def groups_of(model: nn.Module, optimizer=None, type=TYPE, **paramwise) -> dict[str, dict]:
    """Settings of the optimizer by name of the parameter; AdamW with rate 1 and weight decay 0.05."""
    optimizer = optimizer or dict(type='AdamW', lr=1.0, weight_decay=0.05)
    cfg = ConfigDict(type='OptimWrapper', optimizer=optimizer, constructor=type, paramwise_cfg=paramwise)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    settings = {names[id(p)]: group for group in groups for p in group['params']}
    assert len(settings) == sum(len(group['params']) for group in groups)
    return settings


def expected_rate(name: str, family: str, rate: float) -> float:
    if not name.startswith('backbone.'):
        return 1.0
    (depth,) = {d for part, d in DEPTHS[family].items() if name.removeprefix('backbone.').startswith(part)}
    return rate ** (LAST[family] - depth)


@pytest.fixture(params=['detector', 'classifier'])
def make(request):
    """The builder of whole models of mmdet, then that of mmpretrain."""
    return request.getfixturevalue(request.param)


# ------------------------------------------------------------------- numbers


@pytest.mark.parametrize('rate', [0.7, 0.5])
def test_every_parameter_has_the_rate_of_its_depth(family, make, tiny_arch, rate):
    model = make(family, tiny_arch(family))
    rates = {n: g['lr'] for n, g in groups_of(model, layer_decay_rate=rate).items()}
    assert rates == pytest.approx({n: expected_rate(n, family, rate) for n, _ in model.named_parameters()})
    assert min(rates.values()) == pytest.approx(rate ** LAST[family])


def test_rate_1_changes_nothing(family, make, tiny_arch):
    model = make(family, tiny_arch(family))
    options = dict(norm_decay_mult=0.0, custom_keys={'backbone': dict(lr_mult=0.1)})
    plain = groups_of(model, type='upvit_mm.OptimWrapperConstructor', **options)
    decayed = groups_of(model, layer_decay_rate=1.0, **options)
    assert plain.keys() == decayed.keys()
    for name, group in plain.items():
        assert {k: v for k, v in group.items() if k != 'params'} == {
            k: v for k, v in decayed[name].items() if k != 'params'
        }


def test_frozen_and_unused_parameters_are_left_out(family, make, tiny_arch):
    last = dict(deit=(3,), pvtv2=(0, 1, 2))[family]
    model = make(family, tiny_arch(family), frozen_stages=1)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    groups = groups_of(model, layer_decay_rate=0.7)
    assert groups.keys() == trained < dict(model.named_parameters()).keys()
    assert {n: g['lr'] for n, g in groups.items()} == pytest.approx({n: expected_rate(n, family, 0.7) for n in trained})
    unused = make(family, tiny_arch(family), out_indices=last)
    groups = groups_of(unused, layer_decay_rate=0.7)
    gone = {'deit': ('backbone.stages.0.blocks.4.', 'backbone.stages.0.norm.'), 'pvtv2': ('backbone.stages.3.',)}
    assert groups.keys() == {n for n, _ in unused.named_parameters() if not n.startswith(gone[family])}


def test_all_options_of_mmengine_hold(family, make, tiny_arch):
    """They are applied first, and the rate that they give is then scaled. What never decays stays so."""
    model = make(family, tiny_arch(family))
    groups = groups_of(
        model,
        layer_decay_rate=0.7,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        bias_lr_mult=2.0,
        dwconv_decay_mult=0.5,
        custom_keys={
            'cls_token': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0, lr_mult=3.0),
            'head': dict(lr_mult=10.0),
        },
    )
    norms = {f'{n}.' for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    depthwise = {n for n in groups if n.endswith('dwconv.weight')}
    assert bool(depthwise) == (family == 'pvtv2')
    for name, group in groups.items():
        is_norm = f'{name.rpartition(".")[0]}.' in norms
        is_bias = name.endswith('.bias') and not is_norm
        lr, decay = expected_rate(name, family, 0.7), 0.05
        if 'head' in name:
            lr *= 10
        elif 'pos_embed' in name:
            lr, decay = 3 * lr, 0.0
        elif 'cls_token' in name or is_norm:
            decay = 0.0
        elif is_bias:
            lr, decay = 2 * lr, 0.0
        elif name in depthwise:
            decay = 0.025
        assert (group['lr'], group['weight_decay']) == pytest.approx((lr, decay)), name


def test_schedulers_scale_every_rate_alike(family, detector, tiny_arch):
    from mmengine.optim import ConstantLR

    model = detector(family, tiny_arch(family))
    cfg = dict(optimizer=dict(type='AdamW', lr=1e-4), constructor=TYPE, paramwise_cfg=dict(layer_decay_rate=0.7))
    wrapper = build_optim_wrapper(model, cfg)
    before = [g['lr'] for g in wrapper.optimizer.param_groups]
    ConstantLR(wrapper, factor=0.25, end=5)
    assert [g['lr'] for g in wrapper.optimizer.param_groups] == pytest.approx([0.25 * lr for lr in before])


# -------------------------------------------------------------------- models


@pytest.mark.parametrize('package', ['mmdet', 'mmpretrain'])
def test_type_resolves_without_custom_imports(package, run_forked):
    code = f"""
import {package}
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
init_default_scope({package!r})
print(OPTIM_WRAPPER_CONSTRUCTORS.get({TYPE!r}).__module__)
"""
    assert run_forked(code).splitlines()[-1] == 'upvit_mm.optim.layer_decay'


def test_each_of_several_backbones_has_its_own_depths(tiny_arch, build):
    model = nn.ModuleDict(
        {
            'teacher': nn.ModuleDict({'backbone': build('pvtv2'), 'head': nn.Linear(2, 2)}).requires_grad_(False),
            'student': nn.ModuleDict({'backbone': build('deit'), 'head': nn.Linear(2, 2)}),
            'second': nn.ModuleDict({'backbone': build('pvtv2')}),
        }
    )
    rates = {n: g['lr'] for n, g in groups_of(model, layer_decay_rate=0.5).items()}
    assert {n.split('.')[0] for n in rates} == {'student', 'second'}
    assert rates['student.head.weight'] == 1.0
    assert rates['student.backbone.cls_token'] == 0.5**6
    assert rates['second.backbone.stages.0.patch_embed.proj.weight'] == 0.5**7


def test_wrapped_model_and_bare_backbone(build):
    backbone = build('deit')
    alone = {n: g['lr'] for n, g in groups_of(backbone, layer_decay_rate=0.5).items()}
    assert (alone['cls_token'], alone['stages.0.norm.bias']) == (0.5**6, 0.5)
    wrapper = nn.Module()
    wrapper.module = nn.ModuleDict({'backbone': backbone})
    wrapped = {n: g['lr'] for n, g in groups_of(wrapper, layer_decay_rate=0.5).items()}
    assert wrapped == {f'module.backbone.{n}': lr for n, lr in alone.items()}


def test_backbones_of_mmpretrain_are_asked_too(scope):
    from mmpretrain.registry import MODELS

    scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='VisionTransformer', arch='deit-tiny', img_size=32, out_type='cls_token'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=192),
        )
    )
    ours = groups_of(model, layer_decay_rate=0.7)
    theirs = groups_of(model, type='mmpretrain.LearningRateDecayOptimWrapperConstructor', layer_decay_rate=0.7)
    assert {n: g['lr'] for n, g in ours.items()} == pytest.approx({n: g['lr'] for n, g in theirs.items()})


# ----------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        ({}, r'layer_decay_rate = None: must lie in \(0, 1\]; ViTDet has 0.7'),
        (dict(layer_decay_rate=0.0), r'layer_decay_rate = 0.0: must lie in'),
        (dict(layer_decay_rate=1.1), r'layer_decay_rate = 1.1: must lie in'),
        (dict(layer_decay_rate='0.7'), r"layer_decay_rate = '0.7': must lie in"),
        (
            dict(layer_decay_rate=0.7, decay_rate=0.7, num_layers=12),
            r'unknown key\(s\) decay_rate, num_layers; Layer\w+ knows layer_decay_rate, custom_keys, bias_lr_mult',
        ),
    ],
)
def test_wrong_option_is_named(build, paramwise, message):
    with pytest.raises(ValueError, match=message):
        groups_of(build('deit'), **paramwise)


def test_rate_must_be_set(build):
    with pytest.raises(ValueError, match=r'optim_wrapper.optimizer.lr is not set'):
        groups_of(build('deit'), optimizer=dict(type='AdamW'), layer_decay_rate=0.7)


def test_model_without_depths_is_named():
    with pytest.raises(ValueError, match=r'no part of Sequential has get_layer_depth.*Use a backbone of upvit_mm'):
        groups_of(nn.Sequential(nn.Linear(2, 2)), layer_decay_rate=0.7)


# ------------------------------------------------- constructors of others


MMDET, MMPRETRAIN = 'LearningRateDecayOptimizerConstructor', 'LearningRateDecayOptimWrapperConstructor'


def config(scope_name: str, constructor, family: str = 'deit') -> ConfigDict:
    wrapper = dict(constructor=constructor) if constructor else {}
    return ConfigDict(
        default_scope=scope_name, model=dict(backbone=dict(type=BACKBONES[family])), optim_wrapper=wrapper
    )


@pytest.mark.parametrize(
    ('scope_name', 'constructor', 'message'),
    [
        ('mmdet', MMDET, f"optim_wrapper.constructor = '{MMDET}': it knows only ConvNeXt. Use constructor='upvit_mm."),
        ('mmdet', f'mmdet.{MMDET}', 'it knows only ConvNeXt'),
        ('mmpretrain', f'mmdet.{MMDET}', 'it knows only ConvNeXt'),
        ('mmdet', f'mmpretrain.{MMPRETRAIN}', 'a detector of mmdet does not tell it the depth of a layer'),
    ],
)
def test_constructors_that_fail_with_our_backbones_are_refused(family, scope_name, constructor, message):
    with pytest.raises(ValueError, match=message):
        check_constructor(config(scope_name, constructor, family))


@pytest.mark.parametrize(
    ('scope_name', 'constructor'),
    [('mmdet', TYPE), ('mmpretrain', TYPE), ('mmpretrain', MMPRETRAIN), ('mmdet', None)],
)
def test_constructors_that_work_pass(family, scope_name, constructor):
    check_constructor(config(scope_name, constructor, family))


def test_other_backbones_and_bare_configs_pass():
    cfg = config('mmdet', MMDET)
    cfg.model.backbone.type = 'ConvNeXt'
    check_constructor(cfg)
    check_constructor({})


def test_a_step_moves_the_first_block_less(detector, tiny_arch):
    """AdamW's first step has the length of the rate, so it shows the rate that is in use."""
    model = detector('deit', tiny_arch('deit'))
    cfg = dict(
        optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.0),
        constructor=TYPE,
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    wrapper = build_optim_wrapper(model, cfg)
    parameters = dict(model.named_parameters())
    before = {n: p.detach().clone() for n, p in parameters.items()}
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    wrapper.step()
    moved = {n: (p - before[n]).abs().max().item() for n, p in parameters.items()}
    assert moved == pytest.approx({n: 1e-2 * expected_rate(n, 'deit', 0.5) for n in parameters}, rel=1e-2)
