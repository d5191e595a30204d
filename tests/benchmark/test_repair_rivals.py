"""Each rival's repair against a direct solution, and where what was removed is a function of what stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upvit_mm.benchmark.repair_rivals import (
    affine,
    brain_surgeon,
    corp_like,
    grail_like,
    gram_reconstruction,
    logit_map,
    sparsegpt_like,
    state_of,
)
from upvit_mm.pruning import make_plan, prunable_dims, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.workflow.posteriors import build_net

TINY_RIDGE = 1e-13


@pytest.fixture
def dense(family, build, randomise) -> PosteriorNet:
    backbone = build(family, out_indices=(-1,))
    return PosteriorNet(backbone, randomise(nn.Linear(backbone.arch.embed_dims[-1], 4), seed=7)).double()


@pytest.fixture
def batches(image):
    return [Batch(part, range(len(part))) for part in image(64, 64, batch=12).double().split(5)]


def half_of(arch, *kinds) -> dict[str, list[int]]:
    """The first half of each head, or of the width."""
    kept = {}
    for dim in prunable_dims(arch).values():
        if dim.kind in kinds:
            run = dim.size // dim.groups
            kept[dim.name] = [g * run + c for g in range(dim.groups) for c in range((run + 1) // 2)]
    return kept


def network(plan, state) -> PosteriorNet:
    net = build_net(plan.target_arch, state).double()
    net.load_state_dict({key.replace('head.fc.', 'head.'): value for key, value in state.items()})
    return net


def samples(rows: int = 40, channels: int = 7) -> torch.Tensor:
    """``(rows, channels)`` whose means are not 0."""
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(0)).double() + 1


def moment_of(x):
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    return x.T @ x


def ridge_solution(x, y, weight):
    """By least squares with a row for each penalty."""
    penalty = weight**0.5 * torch.eye(x.shape[1]).double()
    return torch.linalg.lstsq(torch.cat([x, penalty]), torch.cat([y, torch.zeros(len(penalty), y.shape[1])])).solution


KEPT, REMOVED = torch.tensor([0, 2, 3, 6]), torch.tensor([1, 4, 5])


def test_gram_reconstruction_is_ridge_regression_of_all_channels():
    x = samples()
    weights, offset = gram_reconstruction(moment_of(x), KEPT, 0.3)
    penalty = 0.3 * x[:, KEPT].square().sum(dim=0).mean()
    assert torch.allclose(weights, ridge_solution(x[:, KEPT], x, penalty).T, atol=1e-10)
    assert not offset.any()


def test_brain_surgeon_is_the_optimal_update_of_kept_columns():
    """Without a penalty, kept weights become those with the least change of the output."""
    x, w = samples(), samples(5)
    weights, _ = brain_surgeon(moment_of(x), KEPT, TINY_RIDGE)
    best = torch.linalg.lstsq(x[:, KEPT], x @ w.T).solution.T
    assert torch.allclose(w @ weights, best, atol=1e-8)
    inverse = torch.linalg.inv(x.T @ x)  # and by the formula of optimal brain surgery
    change = -w[:, REMOVED] @ torch.linalg.inv(inverse[REMOVED][:, REMOVED]) @ inverse[REMOVED][:, KEPT]
    assert torch.allclose(w[:, KEPT] + change, best, atol=1e-8)


def test_affine_maps_have_an_offset():
    x = samples()
    weights, offset = affine(moment_of(x), KEPT, 0.3)
    centred = x - x.mean(dim=0)
    solution = ridge_solution(centred[:, KEPT], centred, 0.3 * centred[:, KEPT].square().sum(dim=0).mean()).T
    assert torch.allclose(weights[REMOVED], solution[REMOVED], atol=1e-10)
    assert torch.equal(weights[KEPT], torch.eye(4).double())
    assert torch.allclose(offset, x.mean(dim=0) - weights @ x[:, KEPT].mean(dim=0))
    assert offset[KEPT].abs().max() < 1e-10


def test_logit_map_is_ridge_regression_over_all_pairs():
    queries, keys = (samples(rows).view(3, -1, 7) for rows in (15, 12))
    pairs = [(q, k) for queries_of, keys_of in zip(queries, keys) for q in queries_of for k in keys_of]
    x = torch.stack([torch.outer(q[KEPT], k[KEPT]).flatten() for q, k in pairs])
    y = torch.stack([q[REMOVED] @ k[REMOVED] for q, k in pairs])[:, None]
    best = ridge_solution(x, y, 0.1 * x.square().sum(dim=0).mean()).view(4, 4)
    assert torch.allclose(logit_map(queries, keys, KEPT, 0.1), best, atol=1e-10)


@pytest.mark.parametrize('repair', [grail_like, sparsegpt_like, corp_like])
def test_layers_get_the_least_squares_solution(dense, batches, repair):
    """Brute force: the inputs of a layer in the dense network, for the channels of an embedding that stay."""
    arch = dense.backbone.arch
    plan = make_plan(arch, half_of(arch, 'embed', 'v', 'mlp_hidden'))
    state = repair(dense, plan, batches, TINY_RIDGE)
    stage = arch.num_stages - 1
    for name, kind in (('attn.proj', 'v'), ('mlp.fc2', 'mlp_hidden')):
        block, seen = f'stages.{stage}.blocks.0', []
        layer = dense.backbone.get_submodule(f'{block}.{name}')
        handle = layer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].flatten(0, -2)))
        with torch.no_grad():
            for batch in batches:
                dense.activations(batch.images)
        handle.remove()
        x, rows = torch.cat(seen), plan.kept[f'stages.{stage}.embed']
        few, bias = x[:, plan.kept[f'{block}.{kind}']], layer.bias[rows]
        wanted = x @ layer.weight[rows].T
        if repair is corp_like:
            few, wanted, bias = torch.cat([few, few.new_ones(len(few), 1)], dim=1), wanted + bias, few.new_zeros(1)
        best = torch.linalg.lstsq(few, wanted).solution
        weight, found = (state[f'backbone.{block}.{name}.{part}'] for part in ('weight', 'bias'))
        given = few[:, : weight.shape[1]] @ weight.T + found
        assert torch.allclose(given, few @ best + bias, atol=1e-5)


@pytest.mark.parametrize('repair', [grail_like, sparsegpt_like, corp_like])
def test_it_is_exact_when_removed_channels_are_linear_in_kept_ones(dense, batches, repair):
    kinds = ('qk', 'v', 'mlp_hidden') if repair is corp_like else ('v', 'mlp_hidden')
    plan = make_plan(dense.backbone.arch, half_of(dense.backbone.arch, *kinds))
    generator = torch.Generator().manual_seed(3)
    for i, stage in enumerate(dense.backbone.stages):
        for j, block in enumerate(stage.blocks):
            name, mlp = f'stages.{i}.blocks.{j}', block.mlp
            layers = {'v': [block.attn.v], 'qk': [block.attn.q, block.attn.k], 'mlp_hidden': [mlp.fc1]}
            layers['mlp_hidden'] += [] if mlp.dwconv is None else [mlp.dwconv]
            for kind in kinds:
                heads = 1 if kind == 'mlp_hidden' else block.attn.num_heads
                kept = plan.kept[f'{name}.{kind}'].view(heads, -1)
                run = len(layers[kind][0].weight) // heads
                for layer in layers[kind]:
                    for head, stays in enumerate(kept):
                        _make_linear(layer, head * run + torch.arange(run), stays, kind, repair, generator)
    with torch.no_grad():
        images = torch.cat([batch.images for batch in batches])
        wanted, plain = dense(images), network(plan, slice_state(state_of(dense), plan))(images)
        found = network(plan, repair(dense, plan, batches, 1e-11))(images)
    assert (plain - wanted).abs().max() > 0.05
    assert torch.allclose(found, wanted, atol=1e-4)


@torch.no_grad()
def _make_linear(layer, channels, stays, kind, repair, generator) -> None:
    """Removed rows of a layer from those that stay; hidden channels, which pass a GELU, become copies."""
    for channel in set(channels.tolist()) - set(stays.tolist()):
        if kind == 'mlp_hidden':
            layer.weight[channel], layer.bias[channel] = layer.weight[stays[0]], layer.bias[stays[0]]
            continue
        mix = torch.randn(len(stays), generator=generator).double() / len(stays) ** 0.5
        layer.weight[channel], layer.bias[channel] = mix @ layer.weight[stays], mix @ layer.bias[stays]
        if kind == 'v' and repair is corp_like:
            layer.bias[channel] += 0.5  # only an affine map has an offset


def test_it_needs_images(dense):
    plan = make_plan(dense.backbone.arch, {})
    with pytest.raises(ValueError, match='there are no images to repair with'):
        grail_like(dense, plan, [], 0.01)
