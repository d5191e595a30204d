"""The table of methods is true: what each needs, and which settings it reads."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.methods import METHODS, Method, readers_of
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.scoring import all_channels, scores_by

SETTINGS = dict(draws=2, seed=1, max_rows=64, amp=None)
IN_BATCHES = [method for method in METHODS.values() if method.needs_images]


@pytest.fixture
def net(family, build, randomise):
    backbone = build(family, out_indices=(-1,))
    return PosteriorNet(backbone, randomise(nn.Linear(backbone.arch.embed_dims[-1], 4), seed=7))


@pytest.fixture
def state(net):
    return {f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}


@pytest.fixture
def images(image):
    return image(64, 64, batch=3)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)
def test_a_function_takes_the_settings_that_its_entry_names(method):
    function = method.of_batch or method.of_weights
    function = getattr(function, 'function', function)  # of a ``Later``
    given = ('net', 'batch', 'channels', 'report', 'arch', 'state', *(['criterion'] if method.criteria else []))
    assert set(inspect.signature(function).parameters) - set(given) == set(method.settings)
    assert METHODS[method.name] is method


@pytest.mark.parametrize('method', METHODS.values(), ids=METHODS)
def test_what_a_method_needs_is_what_it_looks_at(method, net, state, images, monkeypatch):
    """By changing one thing at a time, and by counting backward passes."""
    passes = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, 'grad', lambda *args, **more: passes.append(1) or grad(*args, **more))
    with torch.no_grad():
        predicted = net(images).argmax(dim=1)

    def scores(pictures=images, labels=predicted, weights=state) -> dict:
        return scores_by(method, net, weights, [Batch(pictures, [0, 1, 2], labels)], SETTINGS)

    first, other = scores(), {key: 2 * value for key, value in state.items()}
    assert equal(first, scores())
    looks_at = {
        'weights': not equal(first, scores(weights=other)),
        'images': not equal(first, scores(images.flip(2))),
        'labels': not equal(first, scores(labels=(predicted + 1) % 4)),
        'gradients': bool(passes),
    }
    assert {name for name, looks in looks_at.items() if looks} == set(method.needs)


@pytest.mark.parametrize('method', IN_BATCHES, ids=lambda method: method.name)
def test_sums_of_a_dim_do_not_depend_on_which_others_are_asked_for(method, net, images):
    channels, batch = all_channels(net.backbone.arch), Batch(images, [0, 1, 2])
    own = {name: SETTINGS[name] for name in method.settings}
    whole = dict(method.of_batch(net, batch, channels, **own))
    assert whole.keys() == channels.keys()
    for name in ('stages.0.embed', 'stages.0.blocks.0.v'):
        ((alone, sums),) = method.of_batch(net, batch, {name: channels[name]}, **own)
        assert alone == name
        assert torch.equal(sums, whole[name])


def test_settings_and_who_reads_them():
    assert METHODS['hybrid'].reads == ('draws', 'seed', 'amp', 'max_rows', 'near_share')
    assert readers_of('draws') == ['fisher', 'hybrid']
    assert readers_of('near_share') == ['hybrid']
    assert readers_of('max_rows') == ['exact', 'hybrid']


def test_an_entry_has_one_function():
    with pytest.raises(AssertionError, match='toy: one function'):
        Method('toy', 'nothing', ())
    with pytest.raises(AssertionError, match='toy: a function of a batch needs images'):
        Method('toy', 'nothing', ('weights',), of_batch=METHODS['exact'].of_batch)
