"""Which parameters of our backbones decay: the groups of optimizers of all shipped configs and of others' configs."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict, build_optim_wrapper
from torch import nn
from torch.optim import SGD

from upvit_mm.optim import limit_decay, spared_of_decay

CONFIGS = Path(__file__).parents[2] / 'configs'
SHIPPED = [path for kind in ('classification', 'detection', 'demo') for path in sorted((CONFIGS / kind).glob('*.py'))]
ADAMW = dict(type='AdamW', lr=1.0, weight_decay=0.05)


def decays(wrapper: OptimWrapper, model: nn.Module) -> dict[str, float]:
    """The weight decay of every parameter, by its name."""
    names = {id(p): n for n, p in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    found = {names[id(p)]: group['weight_decay'] for group in groups for p in group['params']}
    assert len(found) == sum(len(group['params']) for group in groups)
    return found


def expected(name: str, model: nn.Module) -> bool:
    """Linear layers and convolutions decay, by their modules and not by their names."""
    module = model.get_submodule(name.rpartition('.')[0])
    return isinstance(module, (nn.Linear, nn.Conv2d)) and name.endswith('.weight')


def of_backbone(found: dict[str, float], model: nn.Module) -> dict[str, float]:
    backbone = {n: value for n, value in found.items() if n.startswith('backbone.')}
    assert {n: value > 0 for n, value in backbone.items()} == {n: expected(n, model) for n in backbone}
    return backbone


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs(path, build, scope):
    """With mmengine's own builder, as in the tools of mmdet and mmpretrain."""
    cfg = Config.fromfile(path)
    scope(cfg.default_scope)
    family = 'deit' if 'deit' in path.name else 'pvtv2'
    model = nn.ModuleDict({'backbone': build(family), 'head': nn.Linear(2, 2)})
    keys = ('optimizer', 'paramwise_cfg', 'constructor')
    settings = {key: cfg.optim_wrapper[key] for key in keys if key in cfg.optim_wrapper}
    found = decays(build_optim_wrapper(model, ConfigDict(settings)), model)
    backbone = of_backbone(found, model)
    decay = cfg.optim_wrapper.optimizer.weight_decay
    assert set(backbone.values()) == {0.0, decay}
    assert sum(value > 0 for value in backbone.values()) == sum(expected(n, model) for n in backbone)
    assert found['head.weight'] == decay


@pytest.mark.parametrize(
    'paramwise',
    [
        {},
        dict(norm_decay_mult=1.0, bias_decay_mult=2.0),
        dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
        dict(custom_keys={'backbone.stages': dict(decay_mult=3.0), 'pos_embed': dict(decay_mult=1.0)}),
    ],
    ids=['one group', 'multiples', 'rate', 'keys'],
)
def test_whatever_a_config_says(family, detector, tiny_arch, paramwise):
    model = detector(family, tiny_arch(family))
    cfg = ConfigDict(optimizer=ADAMW, paramwise_cfg=paramwise)
    wrapper = build_optim_wrapper(model, cfg)
    before = {p: g | {'weight_decay': 0} for g in wrapper.optimizer.param_groups for p in g.pop('params')}
    wrapper = limit_decay(build_optim_wrapper(model, cfg), model)
    after = {p: g for g in wrapper.optimizer.param_groups for p in g['params']}
    assert before.keys() == after.keys()
    for parameter, group in before.items():  # rates and all else stay
        left = {k: v for k, v in after[parameter].items() if k not in ('params', 'weight_decay')}
        assert left == {k: v for k, v in group.items() if k != 'weight_decay'}
    found = decays(wrapper, model)
    backbone = of_backbone(found, model)
    assert len(backbone) - sum(value > 0 for value in backbone.values()) == len(spared_of_decay(model))
    assert found['bbox_head.retina_cls.bias'] == (0.1 if 'bias_decay_mult' in paramwise else 0.05)


def test_groups(build):
    model = nn.ModuleDict({'backbone': build('deit'), 'head': nn.Linear(2, 2)})
    wrapper = build_optim_wrapper(model, ConfigDict(optimizer=ADAMW))
    count = len(wrapper.optimizer.param_groups[0]['params'])
    for _ in range(2):  # the second time changes nothing
        decayed, free = limit_decay(wrapper, model).optimizer.param_groups
        assert (decayed['weight_decay'], free['weight_decay']) == (0.05, 0.0)
        assert len(decayed['params']) + len(free['params']) == count
        assert len(free['params']) == len(spared_of_decay(model))
    several = OptimWrapperDict(one=OptimWrapper(SGD(model.parameters(), lr=1.0, weight_decay=0.1)))
    assert [g['weight_decay'] for g in limit_decay(several, model)['one'].optimizer.param_groups] == [0.1, 0.0]


def test_models_without_a_backbone_of_ours_stay_as_they_are():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    wrapper = limit_decay(DefaultOptimWrapperConstructor(dict(optimizer=ADAMW))(model), model)
    assert [group['weight_decay'] for group in wrapper.optimizer.param_groups] == [0.05]
