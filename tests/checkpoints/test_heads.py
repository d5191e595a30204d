import logging

import pytest
import torch

from upvit_mm.checkpoints import load_backbone, load_classifier, to_ours
from upvit_mm.checkpoints.heads import head_of, linear_head

HIDDEN = {
    'mmpretrain, in21k': ('head.', ('layers.pre_logits', 'layers.head')),
    'timm, in21k': ('', ('pre_logits.fc', 'head')),
    'two layers': ('', ('head.0', 'head.2')),
    'below a prefix': ('module.', ('head.0', 'head.2')),
}


@pytest.mark.parametrize('kind', HIDDEN)
def test_a_head_with_a_hidden_layer_is_refused_by_name(kind, tiny_source, tmp_path, identical):
    before, layers = HIDDEN[kind]
    backbone = tiny_source('timm-deit').state
    shapes = {'weight': (48, 48), 'bias': (48,)}
    head = {f'{before}{layer}.{p}': torch.ones(shape) for layer in layers for p, shape in shapes.items()}
    wrapper = 'backbone.' if before == 'head.' else before
    torch.save({'state_dict': {f'{wrapper}{k}': v for k, v in backbone.items()} | head}, tmp_path / 'x.pth')
    names = r'.weight, .*'.join(layer.replace('.', r'\.') for layer in layers)
    with pytest.raises(ValueError, match=rf'its head is more than one linear layer \(.*{names}.*--no-head'):
        load_classifier(tmp_path / 'x.pth')
    assert identical(load_backbone(tmp_path / 'x.pth'), to_ours(backbone))


@pytest.mark.parametrize(
    'head',
    [
        {'head.norm.weight': (48,), 'head.norm.bias': (48,), 'head.fc.weight': (7, 48), 'head.fc.bias': (7,)},
        {'head.weight': (7, 48, 1, 1), 'head.bias': (7,)},
        {'head.bias': (7,)},
    ],
    ids=['norm', 'convolution', 'bias alone'],
)
def test_what_is_no_linear_layer(head):
    with pytest.raises(ValueError, match=r"checkpoint 'x.pth': its head is more than one linear layer"):
        linear_head({k: torch.ones(shape) for k, shape in head.items()}, 'x.pth')


def test_what_is_left_out_of_a_head(tiny_source, tmp_path, caplog):
    """The head of a distillation token, in timm's and in mmpretrain's names, and what a loss counts."""
    weight, bias = torch.ones(7, 48), torch.ones(7)
    head = {'head.layers.head.weight': weight, 'head.layers.head.bias': bias, 'head.loss_module.counts': bias}
    head |= {'head.layers.head_dist.weight': weight, 'head.layers.head_dist.bias': bias, 'head_dist.bias': bias}
    linear, extra = linear_head(head, 'x.pth')
    assert linear == {'weight': weight, 'bias': bias}
    assert extra == [k for k in head if 'dist' in k or 'loss' in k]
    backbone = {f'backbone.{k}': v for k, v in tiny_source('timm-deit').state.items()}
    torch.save(backbone | head, tmp_path / 'x.pth')
    with caplog.at_level(logging.WARNING, 'upvit_mm'):
        assert torch.equal(load_classifier(tmp_path / 'x.pth')['head.fc.weight'], weight)
    assert 'dropped 4 tensors outside backbone and head (head, head_dist)' in caplog.text


def test_the_nearest_head_is_taken():
    state = {f'{p}head.weight': torch.full((1,), i) for i, p in enumerate(('', 'teacher.', 'teacher.backbone.'))}
    assert head_of(state, 'teacher.backbone.') == ('teacher.backbone.', {'head.weight': torch.tensor([2])})
    del state['teacher.backbone.head.weight']
    assert head_of(state, 'teacher.backbone.') == ('teacher.', {'head.weight': torch.tensor([1])})
    assert head_of(state, 'student.backbone.') == ('', {'head.weight': torch.tensor([0])})
    assert head_of({}, 'a.b.') == ('', {})
