"""Scores of tokens against their definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import spearmanr

from upvit_mm.pruning import importance, make_plan, prunable_dims, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.criteria import ReadTokensChange, real_tokens, token_deviations
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.importance import exact_scores, fisher_scores
from upvit_mm.pruning.token_net import TokenNet


def windows_of(family: str) -> dict:
    return {} if family == 'pvtv2' else {'window_size': 2}


@pytest.fixture
def net(family, build) -> TokenNet:
    return TokenNet(build(family, **windows_of(family))).double()


@pytest.fixture
def batches(image) -> list[Batch]:
    """Five images of 64 x 96, the last of which is 64 x 64 without its padding."""
    x = image(64, 96, batch=5).double()
    return [Batch(x[:3], [0, 1, 2]), Batch(x[3:], [3, 4], None, [(64, 96), (64, 64)])]


@pytest.fixture
def criterion(net, batches) -> ReadTokensChange:
    return ReadTokensChange(token_deviations(net, batches))


def maps(net: TokenNet, images) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(net.backbone(images))


def test_it_reads_what_the_backbone_returns(net, batches):
    for (tokens, grid), map_ in zip(net(batches[0].images), maps(net, batches[0].images), strict=True):
        assert torch.allclose(tokens.transpose(1, 2).unflatten(2, grid), map_, atol=1e-12)


def test_maps_from_the_middle_of_a_plain_network(build, batches):
    net = TokenNet(build('deit', out_indices=(1, 3))).double()
    found = net(batches[0].images)
    assert len(found) == 2
    for (tokens, grid), map_ in zip(found, maps(net, batches[0].images), strict=True):
        assert torch.allclose(tokens.transpose(1, 2).unflatten(2, grid), map_, atol=1e-12)
    scores = fisher_scores(net, batches, criterion=ReadTokensChange(token_deviations(net, batches)), draws=1)
    assert scores['stages.0.blocks.3.v'].min() > 0
    assert scores['stages.0.blocks.4.v'].max() == 0  # never runs


def test_deviations_leave_the_padding_out(net, batches, criterion):
    found = [maps(net, batch.images) for batch in batches]
    for k, deviation in enumerate(criterion.deviations):
        first, second = found[0][k], found[1][k]
        real = second.shape[-1] * 2 // 3
        parts = [*first, second[0], second[1, :, :, : -(-real // 1)]]
        pixels = torch.cat([part.flatten(1) for part in parts], dim=1)
        assert torch.allclose(deviation, pixels.std(dim=1, correction=0), rtol=1e-9)


def test_tokens_that_see_a_part_of_the_picture_are_real():
    real = real_tokens((2, 3), torch.zeros(2, 3, 64, 96), [(33, 64), (32, 65)]).view(2, 2, 3)
    assert real.long().tolist() == [[[1, 1, 0], [1, 1, 0]], [[1, 1, 1], [0, 0, 0]]]
    assert bool(real_tokens((2, 3), torch.zeros(2, 3, 64, 96), None).all())


def test_exact_scores_are_changes_of_the_sliced_network(family, build, net, batches, criterion):
    """Slice one channel out, rebuild, run; channels of the embedding that are gone count as 0."""
    scores = exact_scores(net, batches, criterion=criterion, max_rows=7)
    state = {f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}
    for dim in prunable_dims(net.backbone.arch).values():
        if dim.groups > 1:
            continue  # one channel less is no multiple of the heads
        c = dim.size // 2
        lost = (c, dim.partners()[c])
        plan = make_plan(net.backbone.arch, {dim.name: [k for k in range(dim.size) if k not in lost]})
        small = build(family, plan.target_arch, **windows_of(family)).double()
        small.load_state_dict({k.removeprefix('backbone.'): v for k, v in slice_state(state, plan).items()})
        total = 0.0
        for batch in batches:
            for k, (before, after) in enumerate(zip(maps(net, batch.images), maps(TokenNet(small), batch.images))):
                place = net.places[k][0]
                whole = torch.zeros_like(before)
                whole[:, plan.kept[f'stages.{place}.embed']] = after
                change = ((whole - before) / criterion.deviations[k][:, None, None]).square().sum(dim=1)  # (B, H, W)
                for j, picture in enumerate(change):
                    width = batch.sizes[j][1] if batch.sizes else 96
                    total += picture[:, : picture.shape[1] * width // 96].mean().item()
        assert scores[dim.name][c] * dim.unit == pytest.approx(total / 5, rel=1e-6)


def test_fisher_expects_the_squared_first_order_change(net, batches, criterion, monkeypatch):
    """Over all signs of a few values; the other values are silent."""
    some = torch.tensor([0, 3, 7])
    every = torch.tensor(list(itertools.product((-1, 1), repeat=len(some))))

    def signs(numbers, draws, size, seed, device):
        values = torch.zeros(len(every), len(numbers), size, dtype=torch.int8)
        values[:, :, some] = every[:, None].to(torch.int8)
        return values

    monkeypatch.setattr(importance, '_signs', signs)
    batch = batches[1]
    scores = fisher_scores(net, [batch], criterion=criterion, draws=len(every))
    for name in ('stages.0.embed', 'stages.0.blocks.0.mlp_hidden', f'stages.{net.places[-1][0]}.blocks.0.v'):
        gate = torch.ones(2, 1, len(scores[name]), dtype=torch.float64)

        def values(gate, name=name):
            with gates(net.backbone, {name: gate}):
                return criterion.values(net(batch.images), batch)[:, some]

        slope = torch.autograd.functional.jacobian(values, gate)  # (B, 3, B, 1, size)
        expected = sum(slope[b, :, b, 0].square().sum(dim=0) for b in range(2)) / 2
        assert torch.allclose(scores[name], expected, rtol=1e-8, atol=1e-14)


def test_fisher_ranks_like_exact_removal(net, batches, criterion):
    exact = exact_scores(net, batches, criterion=criterion)
    estimate = fisher_scores(net, batches, criterion=criterion, draws=32)
    ranks = [spearmanr(exact[name], estimate[name]).statistic for name in exact if len(exact[name]) > 15]
    assert sorted(ranks)[len(ranks) // 2] > 0.8


def test_values_that_are_not_finite(net, batches, criterion):
    broken = batches[0]._replace(images=batches[0].images * float('nan'))
    with pytest.raises(ValueError, match='tokens of the network are not finite'):
        exact_scores(net, [broken], criterion=criterion)
    with pytest.raises(ValueError, match='the proxy set has no images'):
        token_deviations(net, [])
