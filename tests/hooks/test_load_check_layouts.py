"""Files of other code, and of several networks, that a run starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

ROOT = Path(__file__).parents[2]
DETECTOR = ROOT / 'configs/demo/retinanet_up-pvtv2-micro_fpn_digits.py'


def prefixed(prefix, state):
    return {f'{prefix}{k}': v for k, v in state.items()}


def test_averages_are_tested_with_their_choice(model, load, identical):
    """mmengine's EMAHook swaps them in the file; where a test has the hook, its copy gets the same weights."""
    from mmengine.hooks import EMAHook

    raw, ema = model('pvtv2').state_dict(), model('pvtv2', seed=1).state_dict()
    content = {'state_dict': ema, 'ema_state_dict': prefixed('module.', raw) | {'steps': torch.tensor(3)}}
    for weights, expected in ((None, ema), ('ema', ema), ('raw', raw)):
        hook, target = EMAHook(), model('pvtv2', seed=2)
        assert load(target, dict(content), hooks=(hook,), weights=weights) == []
        assert identical(target.state_dict(), expected)
        assert identical(hook.ema_model.module.state_dict(), expected)


@pytest.mark.parametrize('layout', ['timm', 'timm, wrapped', 'mmpretrain', 'mmpretrain, compiled', 'official'])
def test_classifiers_of_other_code_are_tested_as_they_are(layout, model, load, tiny_source, image, distance):
    source = tiny_source('mmpretrain-deit' if 'mmpretrain' in layout else 'timm-deit')
    weight, bias = torch.randn(10, 48, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
    if 'mmpretrain' in layout:
        content = prefixed('backbone.', source.state) | {
            'head.layers.head.weight': weight,
            'head.layers.head.bias': bias,
        }
    else:
        content = source.state | {'head.weight': weight, 'head.bias': bias}
    content = prefixed('model.module.', content) if 'wrapped' in layout else content
    content = {'state_dict': prefixed('_orig_mod.', content)} if 'compiled' in layout else content
    content = {'model': content, 'epoch': 3} if layout == 'official' else content
    target = model('deit').double().eval()
    assert load(target, content) == []
    x = image(64, 64).double()
    with torch.no_grad():
        tokens = source.model(x)[0].mean((2, 3)) if 'mmpretrain' in layout else source.model.forward_features(x)[:, 0]
        if 'mmpretrain' not in layout:
            assert distance(target.head(target.extract_feat(x)), tokens @ weight.T + bias) < 1e-10
    assert torch.equal(target.head.fc.weight, weight)
    assert torch.equal(target.head.fc.bias, bias)


def test_a_head_with_a_hidden_layer_is_not_tested(model, load, tiny_source):
    head = {f'head.layers.{n}.{p}': torch.ones(10) for n in ('pre_logits', 'head') for p in ('weight', 'bias')}
    content = prefixed('backbone.', tiny_source('mmpretrain-deit').state) | head
    with pytest.raises(ValueError, match=r'6 tensors are .*, in head: 2 missing, head: 4 extra'):
        load(model('deit').double(), {'state_dict': content})


def test_the_teacher_of_a_mean_teacher_is_tested(model, load, identical):
    """mmdet's SemiBaseDetector keeps both, and tests the teacher."""
    student, teacher = (model('detector', seed=seed).state_dict() for seed in (0, 1))
    both = prefixed('student.', student) | prefixed('teacher.', teacher)
    for weights, expected in ((None, teacher), ('ema', teacher), ('raw', student)):
        target = model('detector', seed=2)
        assert load(target, {'state_dict': both}, weights=weights) == []
        assert identical(target.state_dict(), expected)


def test_a_mean_teacher_itself(scope, stock_arch, load, randomise, identical):
    cfg = Config.fromfile(DETECTOR)
    scope('mmdet')
    cfg.model.backbone.arch = stock_arch('pvtv2')
    cfg.model.neck.in_channels = stock_arch('pvtv2')['embed_dims']

    def semi(seed: int) -> nn.Module:
        return randomise(MODELS.build(dict(type='SemiBaseDetector', detector=cfg.model, semi_train_cfg=dict())), seed)

    source, target = semi(0), semi(1)
    assert load(target, {'state_dict': source.state_dict()}) == []
    assert identical(target.state_dict(), source.state_dict())
    # a plain detector's file goes into both, as SemiBaseDetector has it
    plain = randomise(MODELS.build(cfg.model), 2).state_dict()
    assert load(target, {'state_dict': plain}, 'train') == []
    assert identical(target.state_dict(), prefixed('teacher.', plain) | prefixed('student.', plain))
    state = {k: v for k, v in source.state_dict().items() if k != 'teacher.bbox_head.retina_reg.bias'}
    with pytest.raises(ValueError, match=r'1 tensors are .*: teacher.bbox_head.retina_reg.bias is missing'):
        load(target, {'state_dict': state})
