"""Heads in their principal axes: the same network, and no better factors of a rank."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from fixtures.kept import first_of_every_head
from torch import Tensor, nn

from upvit_mm.pruning import make_plan, prunable_dims, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.head_axes import turn_heads
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.token_net import TokenNet

# one head each with more channels than the tokens have, and a column of ones
WIDE = {
    'deit': dict(embed_dims=[15], qk_dims=[[60, 10, 20, 16, 30]], v_dims=[[60, 30, 18, 32, 9]]),
    'dinov2': dict(embed_dims=[15], qk_dims=[[60, 10, 20, 16, 30]], v_dims=[[60, 30, 18, 32, 9]]),
    'dinov3': dict(embed_dims=[15], v_dims=[[60, 30, 18, 32, 9]]),
    'pvtv2': dict(qk_dims=[[20], [10, 15], [18, 9], [20]], v_dims=[[19], [16, 9], [20, 33], [15]]),
}


def batches(images: Tensor) -> list[Batch]:
    return [Batch(part, range(len(part))) for part in images.split(3)]


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}


def load(backbone: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    backbone.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith('backbone.')})
    return backbone


@pytest.fixture
def settings(family) -> dict:
    return {} if family == 'pvtv2' else dict(window_size=2)


@pytest.fixture
def images(image) -> Tensor:
    return image(64, 64, batch=8).double()


@pytest.mark.parametrize('arch', ['tiny', 'wide'])
@pytest.mark.parametrize(
    ('family', 'windows'), [('deit', 0), ('deit', 2), ('dinov2', 2), ('dinov3', 0), ('dinov3', 2), ('pvtv2', 0)]
)
def test_turned_equals_dense(family, build, tiny_arch, image, images, distance, arch, windows):
    settings = dict(window_size=windows) if windows else {}
    spec = tiny_arch(family, **(WIDE[family] if arch == 'wide' else {}))
    dense = build(family, spec, **settings).double()
    with torch.no_grad():
        if arch == 'wide':
            for layer in (dense.stages[-1].blocks[-1].attn.q, dense.stages[0].blocks[-1].attn.v):
                layer.weight[:3], layer.bias[:3] = 0, 0  # a head with channels that do nothing, or a zero head
    state = state_of(TokenNet(dense))
    turned = turn_heads(TokenNet(dense), state, batches(images))
    net = load(build(family, spec, **settings).double(), turned)
    x = image(96, 80).double()
    with torch.no_grad():
        for a, b in zip(net(x), dense(x), strict=True):
            assert distance(a, b) < 1e-10
    layers = ('attn.v', 'attn.proj') if dense.arch.kind.rotary else ('attn.q', 'attn.k', 'attn.v', 'attn.proj')
    attention = [key for key in state if key.rpartition('.')[0].endswith(layers)]
    for key in state:
        assert turned[key].shape == state[key].shape
        if key not in attention or key.endswith('proj.bias'):
            assert turned[key] is state[key]  # all others stay
        else:
            assert not torch.equal(turned[key], state[key])


def test_zero_queries(build, images, distance):
    """Then the logits are those of no channel at all."""
    dense = build('deit').double()
    with torch.no_grad():
        dense.stages[0].blocks[1].attn.q.weight.zero_()
        dense.stages[0].blocks[1].attn.q.bias.zero_()
    turned = turn_heads(TokenNet(dense), state_of(TokenNet(dense)), batches(images))
    assert turned['backbone.stages.0.blocks.1.attn.k.weight'].abs().max() == 0
    with torch.no_grad():
        assert distance(load(build('deit').double(), turned)(images)[0], dense(images)[0]) < 1e-10


def test_a_classifier_and_its_precision(family, build, images, randomise, distance):
    """The head stays, and turning in single precision loses no more than single precision."""
    backbone = build(family, out_indices=(-1,))
    net = PosteriorNet(backbone, randomise(nn.Linear(backbone.arch.embed_dims[-1], 4), seed=7))
    state = state_of(net) | {f'head.fc.{k}': v for k, v in net.head.state_dict().items()}
    turned = turn_heads(net, state, batches(images.float()))
    assert all(turned[key].dtype == torch.float32 for key in turned)
    assert all(turned[key] is state[key] for key in ('head.fc.weight', 'head.fc.bias'))
    with torch.no_grad():
        logits = net(images.float())
        load(net.backbone, turned)
        assert distance(net(images.float()), logits) < 1e-4


# ----------------------------------------------------------------------- rank


Factors = tuple[Tensor, Tensor]


class Seen(NamedTuple):
    """What one head computes for all pictures, from its definition.

    Attributes:
        queries: inputs ``(rows, C+1)`` of the queries.
        keys: of the keys, after the spatial reduction.
        mixed: of the values, averaged as this head attends.
    """

    queries: Tensor
    keys: Tensor
    mixed: Tensor


@torch.no_grad()
def seen_by(backbone: nn.Module, place: tuple[int, int], head: int, images: Tensor) -> Seen:
    attn, found = backbone.stages[place[0]].blocks[place[1]].attn, []
    handle = attn.register_forward_pre_hook(lambda module, args: found.append(args))
    backbone(images)
    handle.remove()
    ((x, grid),) = found
    source = x if attn.sr is None else attn.source(x, grid)
    q, k = (part[:, head] for part in attn.queries_and_keys(x, source, grid))
    weights = (attn.scale * q @ k.transpose(1, 2)).softmax(dim=-1)  # (B, N, M)
    ones = [torch.cat([t, torch.ones_like(t[..., :1])], dim=-1) for t in (x, source)]
    return Seen(ones[0].flatten(0, 1), ones[1].flatten(0, 1), (weights @ ones[1]).flatten(0, 1))


def channels_of(state: dict, place: tuple[int, int], layer: str, head: int, heads: int) -> Tensor:
    """Weights and biases ``(d, C+1)`` of a head."""
    name = f'backbone.stages.{place[0]}.blocks.{place[1]}.attn.{layer}'
    return torch.cat([state[f'{name}.weight'], state[f'{name}.bias'][:, None]], dim=1).chunk(heads)[head]


def products(state: dict, place: tuple[int, int], head: int, heads: int, seen: Seen, rotary: bool) -> list[Factors]:
    """The products of a head for all pictures, as sums over its channels.

    First factors ``(queries, d)`` and ``(keys, d)`` of the logits of every query with every key, but not of rotary
    channels, which differ from place to place. Then ``(rows, d)`` and ``(C, d)`` of what the head adds to the stream.
    """
    out = state[f'backbone.stages.{place[0]}.blocks.{place[1]}.attn.proj.weight'].chunk(heads, dim=1)[head]
    outputs = (seen.mixed @ channels_of(state, place, 'v', head, heads).T, out)
    if rotary:
        return [outputs]
    q, k = (channels_of(state, place, layer, head, heads) for layer in 'qk')
    return [(seen.queries @ q.T, seen.keys @ k.T), outputs]


def error(dense: Factors, other: Factors) -> float:
    return (dense[0] @ dense[1].T - other[0] @ other[1].T).square().sum().item()


def cut(factors: Factors, channels) -> Factors:
    return factors[0][:, channels], factors[1][:, channels]


PLACES = {
    'deit': ((0, 3), 1, 4),
    'dinov2': ((0, 3), 1, 4),
    'dinov3': ((0, 3), 1, 4),
    'pvtv2': ((1, 0), 1, 2),
}  # block, head, heads


@pytest.fixture
def both(family, build, images) -> tuple[list[Factors], list[Factors]]:
    """Products of one head, dense and turned."""
    dense = build(family).double()
    place, head, heads = PLACES[family]
    seen = seen_by(dense, place, head, images)
    state = state_of(TokenNet(dense))
    turned = turn_heads(TokenNet(dense), state, batches(images))
    rotary = dense.arch.kind.rotary
    return tuple(products(tensors, place, head, heads, seen, rotary) for tensors in (state, turned))


def test_the_first_channels_are_the_best_approximation(both):
    """By brute force: singular values of all logits and of all outputs of a head."""
    for dense, turned in zip(*both):
        values = torch.linalg.svdvals(dense[0] @ dense[1].T)
        assert error(dense, turned) < 1e-16 * values.square().sum()
        width = dense[0].shape[1]
        sizes = turned[0].square().sum(dim=0).sqrt() * turned[1].square().sum(dim=0).sqrt()
        assert torch.allclose(sizes, values[:width], rtol=1e-4)  # what no picture shows counts a little
        assert bool((sizes.diff() <= 0).all())
        for rank in range(1, width):
            assert error(dense, cut(turned, range(rank))) == pytest.approx(
                values[rank:].square().sum().item(), rel=1e-4
            )


def test_directions_of_both_factors_are_orthogonal(both):
    """In units of what they see."""
    (_, turned) = both
    for a, b in turned:
        for factor in (a, b):
            gram = factor.T @ factor
            assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-5 * gram.max())


def test_no_other_choice_is_better(both, tokens):
    """Not any subset of the old channels, nor least squares on random subspaces."""
    for number, (dense, turned) in enumerate(zip(*both)):
        width = dense[0].shape[1]
        for rank in (1, width // 2, width - 1):
            best = error(dense, cut(turned, range(rank)))
            subsets = [error(dense, cut(dense, list(some))) for some in itertools.combinations(range(width), rank)]
            assert best < min(subsets)
            turned_subsets = [error(dense, cut(turned, list(s))) for s in itertools.combinations(range(width), rank)]
            assert best == min(turned_subsets)
            for seed in range(20):
                basis = torch.linalg.qr(tokens(width, rank, seed=100 * number + seed)).Q  # of the old channels
                old = dense[0] @ basis
                second = torch.linalg.lstsq(old, dense[0] @ dense[1].T).solution.T
                assert best < error(dense, (old, second))


def test_sliced_equals_gated(family, build, settings, image, images, distance):
    """Channels of a turned head are channels like any others."""
    dense = build(family, **settings).double()
    turned = turn_heads(TokenNet(dense), state_of(TokenNet(dense)), batches(images))
    load(dense, turned)
    kept = {}
    for dim in prunable_dims(dense.arch).values():
        share = 0.5 if dim.kind in ('qk', 'v') else 1 - 1 / dim.size
        kept[dim.name] = torch.tensor(first_of_every_head(dim, share))
    plan = make_plan(dense.arch, kept)
    small = load(build(family, plan.target_arch, **settings).double(), slice_state(turned, plan))
    values = {n: torch.zeros(d.size).double().index_fill(0, kept[n], 1.0) for n, d in prunable_dims(dense.arch).items()}
    x = image(64, 80).double()
    with torch.no_grad(), gates(dense, values):
        for i, (a, b) in enumerate(zip(small(x), dense(x), strict=True)):
            assert distance(a, b[:, kept[f'stages.{i}.embed']]) < 1e-10


def test_blocks_that_never_run_stay(build, images):
    net = TokenNet(build('deit', out_indices=(1, 3))).double()
    state = state_of(net)
    turned = turn_heads(net, state, batches(images))
    changed = {key.split('.')[4] for key in state if turned[key] is not state[key]}
    assert changed == {'0', '1', '2', '3'}


def test_no_pictures(family, build):
    net = TokenNet(build(family))
    with pytest.raises(ValueError, match='there are no images: the principal axes of heads'):
        turn_heads(net, state_of(net), [])
    assert not any(block.attn._forward_pre_hooks for stage in net.backbone.stages for block in stage.blocks)


@pytest.mark.parametrize('family', ['deit', 'dinov3', 'pvtv2'])
def test_both_factors_of_a_channel_have_one_norm(family, build, images):
    """Whatever the number of pictures. A training moves all weights alike: it destroys the smaller of two factors."""
    dense = build(family).double()
    state = state_of(TokenNet(dense))
    turned = turn_heads(TokenNet(dense), state, batches(images))
    again = turn_heads(TokenNet(dense), state, 50 * batches(images))
    checked = 0
    for name in (name[: -len('.proj.weight')] for name in turned if name.endswith('attn.proj.weight')):
        value = torch.cat([turned[f'{name}.v.weight'], turned[f'{name}.v.bias'][:, None]], dim=1).norm(dim=1)
        torch.testing.assert_close(value, turned[f'{name}.proj.weight'].norm(dim=0))
        if family != 'dinov3':
            joined = (torch.cat([turned[f'{name}.{k}.weight'], turned[f'{name}.{k}.bias'][:, None]], 1) for k in 'qk')
            query, key = (rows.norm(dim=1) for rows in joined)
            torch.testing.assert_close(query, key)
        for layer in ('v.weight', 'proj.weight'):
            torch.testing.assert_close(turned[f'{name}.{layer}'].norm(), again[f'{name}.{layer}'].norm())
        checked += 1
    assert checked == sum(dense.arch.depths)
