"""``torch.compile`` with images of many sizes, as multi-scale training and a test set of any pictures bring them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from upvit_mm.hooks import CompileBackbone

ARCHS = {
    'deit': dict(
        family='deit', embed_dims=[12], depths=[3], num_heads=2, mlp_hidden_dims=16, img_size=64, patch_size=8
    ),
    'pvtv2': dict(
        family='pvtv2', embed_dims=[8, 12, 16, 16], depths=1, num_heads=1, mlp_hidden_dims=16, sr_ratios=[8, 4, 2, 1]
    ),
}
WINDOWS = dict(window_size=5, global_blocks=(0, 2))
# the size of the stored positions, wider, higher with incomplete patches, larger
SIZES = [(64, 64), (72, 104), (129, 77), (136, 88)]
# of a multi-scale training, padded to multiples of 32 pixels, in no order
TRAINING_SIZES = [(160, 160), (64, 128), (128, 160), (128, 192), (96, 192), (96, 128)]
TRAINING_SIZES += [(96, 64), (160, 192), (128, 64), (160, 64), (64, 160), (128, 96)]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()


def outputs(network, x, trained) -> list[torch.Tensor]:
    """Maps, and in training the gradients of all parameters."""
    with torch.set_grad_enabled(bool(trained)):
        maps = list(network(x))
        return maps + (list(torch.autograd.grad(sum(m.square().sum() for m in maps), trained)) if trained else [])


@pytest.mark.parametrize(
    ('family', 'settings', 'dynamic', 'training'),
    [
        ('deit', {}, None, True),
        ('deit', dict(out_indices=(0, 2)), True, True),
        ('deit', {}, None, False),
        ('deit', WINDOWS, None, True),
        ('pvtv2', {}, True, False),
    ],
    ids=['deit', 'deit-two-maps-dynamic', 'deit-eval', 'windows', 'pvtv2-dynamic-eval'],
)
def test_every_size_equals_eager_in_at_most_three_graphs(family, settings, dynamic, training, build, image):
    backbone = build(family, ARCHS[family], **settings).double().train(training)
    compiled = torch.compile(backbone, backend='aot_eager', fullgraph=True, dynamic=dynamic)
    trained = list(backbone.parameters()) if training else []
    for size in SIZES:
        x = image(*size).double()
        actual, expected = outputs(compiled, x, trained), outputs(backbone, x, trained)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert counters['stats']['unique_graphs'] <= 3


@pytest.mark.parametrize(('family', 'settings'), [('deit', WINDOWS), ('pvtv2', {})], ids=['windows', 'pvtv2'])
def test_multi_scale_training_takes_at_most_four_graphs(family, settings, build, image):
    backbone = build(family, ARCHS[family], **settings).train()
    runner, hook = SimpleNamespace(model=nn.ModuleDict({'backbone': backbone})), CompileBackbone(backend='eager')
    runner.model.backbone, names = backbone, set(backbone.state_dict())
    hook.before_train(runner)
    for size in TRAINING_SIZES:
        backbone(image(*size))
    graphs = counters['stats']['unique_graphs']
    assert 1 <= graphs <= 4
    hook.before_val(runner)
    seen = []
    handle = backbone.stages[0].norm.register_forward_hook(lambda *given: seen.append(given))
    backbone.eval()(image(64, 96))  # a new size and mode
    handle.remove()
    hook.after_val(runner)
    backbone.train()(image(96, 160))
    assert (len(seen), counters['stats']['unique_graphs']) == (1, graphs)
    assert set(backbone.state_dict()) == names
    assert copy.deepcopy(backbone)._compiled_call_impl is None  # an average of the weights must not run these
