"""Scores against their definitions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from upvit_mm.pruning import importance, make_plan, prunable_dims, slice_state
from upvit_mm.pruning.baselines import magnitude_scores, random_scores
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.criteria import log_posteriors
from upvit_mm.pruning.dims import PrunableDim
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.importance import exact_scores, exact_sums, fisher_scores, taylor_sums
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.walk import Entry

CLASSES = 4


@pytest.fixture
def net(family, build, randomise):
    backbone = build(family, out_indices=(-1,))
    return PosteriorNet(backbone, randomise(nn.Linear(backbone.arch.embed_dims[-1], CLASSES), seed=7)).double()


@pytest.fixture
def batches(image):
    """Five images in batches of 3 and 2."""
    x = image(64, 64, batch=5).double()
    return [Batch(x[:3], [0, 1, 2]), Batch(x[3:], [3, 4])]


def state_of(net: PosteriorNet) -> dict:
    state = {f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}
    return state | {f'head.fc.{k}': v for k, v in net.head.state_dict().items()}


def test_logits_are_those_of_an_mmpretrain_classifier(family, net, batches, scope):
    from mmpretrain.registry import MODELS

    scope('mmpretrain')
    backbone = dict(type=f'upvit_mm.{type(net.backbone).__name__}', arch=net.backbone.arch.to_dict(), out_indices=(-1,))
    pooling = dict(neck=dict(type='GlobalAveragePooling')) if family == 'pvtv2' else {}
    backbone |= {'out_type': 'cls_token'} if family != 'pvtv2' else {}
    head = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=net.backbone.arch.embed_dims[-1])
    model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head, **pooling)).double().eval()
    model.load_state_dict(state_of(net))
    with torch.no_grad():
        assert torch.allclose(net(batches[0][0]), model(batches[0][0], mode='tensor'), atol=1e-12)


def test_resuming_anywhere_gives_the_same_logits(net, batches):
    with torch.no_grad():
        passed, logits = net.activations(batches[0][0])
        assert len(passed) == 2 * net.backbone.arch.num_stages + 2 * sum(net.backbone.arch.depths)
        for entry, (x, grid) in passed.items():
            assert torch.allclose(net.resume(entry, x, grid), logits, atol=1e-12)


def test_kl_equals_slicing_the_channel_out(family, build, net, batches):
    """The literal definition: slice one channel out, rebuild, run; every channel of every dim that can lose one."""
    scores = exact_scores(net, batches, max_rows=7)
    state = state_of(net)
    for dim in prunable_dims(net.backbone.arch).values():
        channels = range(dim.size) if dim.size < 12 else (0, dim.size // 2, dim.size - 1)
        for c in channels:
            if dim.groups > 1:
                continue  # one channel less is no multiple of the heads; see the next test
            lost = (c, dim.partners()[c])
            plan = make_plan(net.backbone.arch, {dim.name: [k for k in range(dim.size) if k not in lost]})
            expected = divergence(family, build, net, state, plan, batches) / dim.unit
            assert scores[dim.name][c] == pytest.approx(expected, rel=1e-6)


def test_kl_of_head_channels_equals_slicing_one_from_each_head(family, build, net, batches):
    """Heads stay equally wide, so the rebuilt net lacks one channel of each: the gate must do the same."""
    for dim in prunable_dims(net.backbone.arch).values():
        if dim.groups == 1 or dim.size == dim.groups * dim.unit:
            continue
        run = dim.size // dim.groups
        lost = torch.tensor([g * run + g % run for g in range(dim.groups)])
        lost = torch.cat([lost, dim.partners()[lost]])
        plan = make_plan(net.backbone.arch, {dim.name: [k for k in range(dim.size) if k not in lost]})
        gate = torch.ones(dim.size, dtype=torch.float64).index_fill(0, lost, 0)
        total = 0.0
        with torch.no_grad():
            for images, *_ in batches:
                reference = log_posteriors(net(images))
                with gates(net.backbone, {dim.name: gate}):
                    pruned = log_posteriors(net(images))
                total += (reference.exp() * (reference - pruned)).sum().item()
        assert total / 5 == pytest.approx(divergence(family, build, net, state_of(net), plan, batches), rel=1e-6)


def divergence(family, build, net, state, plan, batches) -> float:
    backbone = build(family, plan.target_arch, out_indices=(-1,))
    head = nn.Linear(plan.target_arch.embed_dims[-1], CLASSES)
    small = PosteriorNet(backbone, head).double()
    sliced = slice_state(state, plan)
    small.backbone.load_state_dict({k[9:]: v for k, v in sliced.items() if k.startswith('backbone.')})
    small.head.load_state_dict({k[8:]: v for k, v in sliced.items() if k.startswith('head.fc.')})
    with torch.no_grad():
        terms = [(log_posteriors(net(x)), log_posteriors(small(x))) for x, *_ in batches]
    return sum((p.exp() * (p - q)).sum().item() for p, q in terms) / 5


def test_kl_does_not_depend_on_how_it_is_batched(net, batches):
    names = [name for name in prunable_dims(net.backbone.arch) if name.endswith(('0.embed', '0.v'))]
    small, large = (exact_scores(net, batches, names, max_rows=max_rows) for max_rows in (1, 1000))
    assert list(small) == names
    assert all(torch.allclose(small[n], large[n], rtol=1e-9) for n in names)
    assert all((scores >= 0).all() and scores.max() > 0 for scores in large.values())


def of_both(values: Tensor, dim: PrunableDim) -> Tensor:
    """From one value for each pair of channels to one for each channel."""
    return values.view(dim.groups, 1, -1).expand(-1, dim.unit, -1).flatten()


def test_fisher_expects_the_fisher_information(net, batches, monkeypatch):
    """Averaged over all sign vectors it is the exact value, here by one backward pass a class."""
    signs = torch.tensor(list(itertools.product((-1, 1), repeat=CLASSES)))  # (16, classes)
    monkeypatch.setattr(importance, '_signs', lambda numbers, *args: signs[:, None].expand(-1, len(numbers), -1))
    scores = fisher_scores(net, batches, draws=len(signs))
    expected = {name: torch.zeros_like(score) for name, score in scores.items()}
    dims = prunable_dims(net.backbone.arch)
    for images, *_ in batches:
        for image in images.split(1):
            leaves = {n: image.new_ones(len(s) // dims[n].unit, requires_grad=True) for n, s in scores.items()}
            with gates(net.backbone, {n: of_both(leaf, dims[n]) for n, leaf in leaves.items()}):
                log_p = log_posteriors(net(image))[0]
            for k in range(CLASSES):
                gradients = torch.autograd.grad(log_p[k], list(leaves.values()), retain_graph=True)
                for name, gradient in zip(leaves, gradients):
                    score = 0.5 * log_p[k].exp().detach() * gradient.square() / 5
                    expected[name] += of_both(score, dims[name]) / dims[name].unit
    for name in scores:
        assert torch.allclose(scores[name], expected[name], rtol=1e-8, atol=1e-14)


def test_fisher_depends_on_seed_and_image_alone(net, batches, image):
    x = image(64, 64, batch=5).double()
    whole, parts, other = (
        fisher_scores(net, b, draws=2, seed=s) for b, s in (([Batch(x, list(range(5)))], 3), (batches, 3), (batches, 4))
    )
    for name in whole:
        assert torch.allclose(whole[name], parts[name], rtol=1e-9)
        assert not torch.allclose(whole[name], other[name], rtol=1e-3)
    reverse = fisher_scores(net, [Batch(x.flip(0), [4, 3, 2, 1, 0])], draws=2, seed=3)
    assert all(torch.allclose(whole[name], reverse[name], rtol=1e-9) for name in whole)


def test_kl_of_some_channels(net, batches):
    name = 'stages.0.blocks.0.mlp_hidden'
    some = {name: torch.tensor([1, 4, 5, 11])}
    whole = exact_scores(net, batches, [name])[name]
    sums = sum(dict(exact_sums(net, batch, some, max_rows=6))[name] for batch in batches)
    expected = torch.zeros_like(whole).index_copy(0, some[name], whole[some[name]])
    assert torch.allclose(sums / 5, expected, rtol=1e-9)


def test_taylor_is_the_mean_size_of_the_slope(net, batches):
    """One image and one gate vector at a time; with labels, and without them on the predictions."""
    labels = [torch.tensor([0, 3, 2]), torch.tensor([1, 1])]
    given = [Batch(b.images, b.numbers, y) for b, y in zip(batches, labels)]
    name = 'stages.0.blocks.0.v'
    for some in (batches, given):
        total = sum(dict(taylor_sums(net, batch, [name]))[name] for batch in some)
        expected = torch.zeros_like(total)
        for batch in some:
            for k, image in enumerate(batch.images.split(1)):
                leaf = image.new_ones(len(total), requires_grad=True)
                with gates(net.backbone, {name: leaf}):
                    log_p = log_posteriors(net(image))[0]
                label = log_p.argmax() if batch.labels is None else batch.labels[k]
                expected += torch.autograd.grad(-log_p[label], leaf)[0].abs()
        assert torch.allclose(total, expected, rtol=1e-8)


def test_scoring_leaves_the_network_as_it_was(net, batches, identical):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    exact_scores(net, batches, ['stages.0.embed'])
    fisher_scores(net, batches, draws=1)
    assert identical(net.state_dict(), before)
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_magnitude_is_the_norm_of_what_goes_with_a_channel(family, net):
    arch, state = net.backbone.arch, state_of(net)
    scores = magnitude_scores(arch, state)
    for dim in prunable_dims(arch).values():
        if dim.groups > 1:
            continue
        gone = {0, int(dim.partners()[0])}
        sliced = slice_state(state, make_plan(arch, {dim.name: [c for c in range(dim.size) if c not in gone]}))
        lost = 0.0
        for key, tensor in state.items():
            if not key.endswith('frequencies'):
                lost += (tensor.square().sum() - sliced[key].square().sum()).item()
        # a tensor that the dim owns on two axes (the spatial reduction) loses the crossing once, not twice
        crossing = sum(
            state[slot.tensor][0, 0].square().sum().item()
            for slot in dim.slots
            if slot.axis == 1 and slot._replace(axis=0) in dim.slots
        )
        found = sum(scores[dim.name][c].item() ** 2 for c in gone)
        assert found == pytest.approx(lost + crossing, rel=1e-9)


def test_random_scores_follow_the_seed(family, net):
    first, again, other = (random_scores(net.backbone.arch, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) and not torch.equal(first[n], other[n]) for n in first)


def test_bad_input(net, batches, build, family):
    with pytest.raises(ValueError, match=r"dim 'stages.0.width'"):
        exact_scores(net, batches, ['stages.0.width'])
    with pytest.raises(ValueError, match='no images'):
        exact_scores(net, [])
    with pytest.raises(ValueError, match='draws = 0'):
        fisher_scores(net, batches, draws=0)
    with pytest.raises(ValueError, match='not finite'):
        exact_scores(net, [Batch(batches[0].images * float('nan'), [0, 1, 2])])
    with pytest.raises(ValueError, match='head reads 3 channels'):
        PosteriorNet(build(family), nn.Linear(3, 2))
    assert Entry(0) < Entry(0, 0) < Entry(0, 1) < Entry(1)
