"""Token dropping: what it computes, what it costs, and the rate that meets a budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.choices import FILLS
from upvit_mm.compare.dropping_costs import dropping_macs, kept_tokens, rate_for_macs
from upvit_mm.compare.kept_tokens import KeptTokens
from upvit_mm.compare.token_dropping import attention_of_kept, class_attention, drop_tokens
from upvit_mm.models.network import Network, maps_of
from upvit_mm.pruning.costs import count_macs
from upvit_mm.registry import MODELS


@pytest.fixture
def dense(family, build) -> Network:
    return Network(build(family).double())


VITS = ('deit', 'dinov2')


@pytest.fixture(params=[*VITS, 'pvtv2'])
def family(request) -> str:
    return request.param


@pytest.fixture
def indices(family) -> tuple[int, ...]:
    return (0, 2, 4) if family in VITS else (0, 1, 2, 3)


@pytest.fixture
def twelve_blocks():
    """A narrow ViT, and ``pruned(n)``: with one n-th of its widths."""

    def narrow(n: int) -> ArchSpec:
        widths = dict(embed_dims=[48], depths=[12], num_heads=1, qk_dims=48 // n, v_dims=48 // n)
        return ArchSpec.from_dict(dict(family='deit', mlp_hidden_dims=192 // n, img_size=224, **widths))

    return Network(MODELS.build(dict(type='upvit_mm.UPViT', arch=narrow(1).to_dict())).eval()), narrow


@torch.no_grad()
def maps(network, x, indices):
    return maps_of(network.backbone, x, indices)


@pytest.mark.parametrize('fill', FILLS)
def test_keeping_all_is_the_dense_network(dense, indices, fill, image, distance):
    x = image(100, 75).double()
    for a, b in zip(maps(drop_tokens(dense, 1.0, fill), x, indices), maps(dense, x, indices)):
        assert distance(a, b) < 1e-10


def test_maps_hold_zeros_neighbours_or_what_was_there(dense, indices, image):
    x = image(96, 128).double()
    by_fill = {fill: maps(drop_tokens(dense, 0.5, fill), x, indices) for fill in FILLS}
    whole = maps(dense, x, indices)
    for k, (zeros, reference) in enumerate(zip(by_fill['zeros'], whole)):
        assert zeros.shape == reference.shape
        empty = (zeros == 0).all(dim=1)  # (B, H, W)
        if dense.arch.family in VITS and k == 0:  # in front of the first block that drops
            assert not empty.any()
            continue
        assert 0.4 < empty.double().mean() < 0.9
        for fill in ('nearest', 'last'):
            assert not (by_fill[fill][k] == 0).all(dim=1).any()


def test_kept_patches_of_a_deit_do_not_depend_on_the_fill(build, image, distance):
    """Dropped patches are never looked at again."""
    network, x = Network(build('deit').double()), image(96, 128).double()
    zeros, *others = (maps(drop_tokens(network, 0.5, fill), x, (4,))[0] for fill in FILLS)
    kept = ~(zeros == 0).all(dim=1, keepdim=True)
    for other in others:
        assert distance(other * kept, zeros * kept) < 1e-12


def test_a_deit_by_hand(build, image, distance):
    """One block drops half of the patches: from there on the class token and the others alone."""
    backbone, x = build('deit').double(), image(64, 80, batch=1).double()
    stage = backbone.stages[0]
    found = maps(drop_tokens(Network(backbone), 0.5, start=(2,)), x, (4,))[0]
    with torch.no_grad():
        tokens, grid = backbone.enter_stage(0, x)
        for block in stage.blocks[:2]:
            tokens = block(tokens, grid)
        attn, normed = stage.blocks[2].attn, stage.blocks[2].norm1(tokens)
        heads = [t.chunk(attn.num_heads, dim=2) for t in (attn.q(normed), attn.k(normed))]
        weights = torch.stack([(attn.scale * q @ k.transpose(1, 2)).softmax(-1)[:, 0] for q, k in zip(*heads)])
        score = weights.mean(dim=0)[0, 1:]
        assert distance(class_attention(attn, normed, 1)[0], score) < 1e-10
        kept = sorted(score.argsort(descending=True)[:10].tolist())
        tokens = stage.blocks[2].add_attn(tokens, grid)[:, [0, *(1 + k for k in kept)]]
        tokens = stage.blocks[2].add_mlp(tokens, grid)
        for block in stage.blocks[3:]:
            tokens = block(tokens, grid)
        expected = torch.zeros(1, 20, 45).double()
        expected[:, kept] = stage.norm(tokens)[:, 1:]
    assert distance(found.flatten(2).transpose(1, 2), expected) < 1e-10


@pytest.mark.parametrize('name', VITS)
def test_windows_of_a_vit(name, build, image, distance):
    """Keeping all is the windowed network; windows that cover the grid are none."""
    x = image(100, 75).double()
    for settings in (dict(window_size=2), dict(window_size=3, global_blocks=())):
        network = Network(build(name, **settings).double())
        for a, b in zip(maps(drop_tokens(network, 1.0), x, (2, 4)), maps(network, x, (2, 4))):
            assert distance(a, b) < 1e-10
    covered, whole = (Network(build(name, **settings).double()) for settings in (dict(window_size=8), {}))
    for a, b in zip(maps(drop_tokens(covered, 0.5), x, (2, 4)), maps(drop_tokens(whole, 0.5), x, (2, 4))):
        assert distance(a, b) < 1e-10
    narrow = Network(build(name, window_size=2, global_blocks=()).double())
    assert distance(maps(drop_tokens(narrow, 0.5), x, (4,))[0], maps(drop_tokens(whole, 0.5), x, (4,))[0]) > 1e-3


def test_patches_that_stay_attend_within_their_window(build, distance):
    backbone, grid = build('deit', window_size=2, global_blocks=()).double(), (3, 5)
    attn = backbone.stages[0].blocks[1].attn
    places = torch.tensor([[0, 1, 4, 6, 9, 12, 14], [2, 3, 5, 7, 8, 10, 13]])
    x = torch.randn(2, 8, 45, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = attention_of_kept(attn, x, places, grid)
        for b in range(2):
            for n in range(8):
                seen = list(range(8))  # the class token sees all
                if n:
                    window = [(p // 5 // 2, p % 5 // 2) for p in places[b].tolist()]
                    seen = [0, *(m + 1 for m in range(7) if window[m] == window[n - 1])]
                q, k, v = attn.q(x[b, n]), attn.k(x[b, seen]), attn.v(x[b, seen])
                heads = zip(*(t.chunk(attn.num_heads, dim=-1) for t in (q, k, v)))
                mixed = torch.cat([(attn.scale * k_ @ q_).softmax(0) @ v_ for q_, k_, v_ in heads])
                assert distance(found[b, n], attn.proj(mixed)) < 1e-10


def test_costs_with_windows(build):
    backbone = build('deit', window_size=4)
    network, size = drop_tokens(Network(backbone), 1.0), (224, 320)
    assert (
        network.macs(size)
        == count_macs(backbone.arch, size, windows=backbone.windows)
        < count_macs(backbone.arch, size)
    )
    pruned = backbone.arch.with_widths({'mlp_hidden_dims': 20})
    cheaper = drop_tokens(Network(backbone), pruned)
    budget = count_macs(pruned, size, windows=backbone.windows)
    assert cheaper.macs(size) == pytest.approx(budget, rel=0.01)


def test_pvtv2_keeps_what_is_farthest_from_the_mean(build, image):
    backbone, x = build('pvtv2').double(), image(64, 96, batch=1).double()
    found = maps(drop_tokens(Network(backbone), 0.25), x, (0,))[0]
    with torch.no_grad():
        embedded = backbone.stages[0].patch_embed.proj(x)[0].flatten(1)
    distance = (embedded - embedded.mean(dim=1, keepdim=True)).norm(dim=0)
    kept = (found[0] != 0).any(dim=0).flatten()
    assert kept.sum() == 96
    assert distance[kept].min() >= distance[~kept].max()
    later = maps(drop_tokens(Network(backbone), 0.25, start=2), x, (1, 2))
    assert torch.equal(later[0], maps(Network(backbone), x, (1,))[0])
    assert (later[1] == 0).all(dim=1).sum() == 4 * 6 - 6


def test_nearest_fill_is_nearest(image):
    grid, places = (5, 7), torch.tensor([[0, 8, 20, 33], [3, 4, 5, 34]])
    kept = KeptTokens.on(grid, places, 'nearest')
    where = torch.stack(torch.meshgrid(*(torch.arange(s) for s in grid), indexing='ij'), dim=-1).flatten(0, 1).double()
    for source, members in zip(kept.source, places):
        distances = torch.cdist(where, where[members])
        assert torch.equal(distances.gather(1, source[:, None])[:, 0], distances.min(dim=1).values)
    tokens = torch.randn(2, 35, 3)
    assert torch.equal(kept.spread(kept.take(tokens)).gather(1, places[..., None].expand(-1, -1, 3)), kept.take(tokens))


def count_by_hand(network: Network, size) -> int:
    """MACs from the shapes that pass the modules; depth-wise filters at kept places, as the note says."""
    total, seen = 0, {}

    def watch(name):
        def look(module, args, out):
            nonlocal total
            rows = out.numel() // out.shape[1 if isinstance(module, nn.Conv2d) else -1]
            if isinstance(module, nn.Conv2d):
                if module.groups > 1:
                    rows = seen[name.replace('dwconv', 'fc1')]
                total += rows * module.weight.numel()
            elif seen.get(name) is None or '.attn.' not in name:  # the score's own q and k would reuse these
                total += rows * module.weight.numel()
                seen[name] = rows

        return look

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in network.backbone.backbone.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    last = (network.arch.depths[0] - 1,) if network.arch.family in VITS else (3,)
    maps(network, torch.zeros(1, 3, *size).to(next(network.backbone.parameters())), last)
    for handle in handles:
        handle.remove()
    for name, rows in list(seen.items()):
        if name.endswith('attn.q'):
            module = network.backbone.backbone.get_submodule(name.removesuffix('.q'))
            total += rows * seen[f'{name[:-1]}k'] * (module.q.out_features + module.v.out_features)
    return total


@pytest.mark.parametrize('rate', [1.0, 0.6, 0.1])
def test_macs_are_those_of_the_shapes(dense, rate):
    for size in ((64, 64), (75, 100)):
        network = drop_tokens(dense, rate)
        assert network.macs(size) == pytest.approx(count_by_hand(network, size), abs=1)
        if rate == 1:
            assert network.macs(size) == count_macs(dense.arch, size)


def test_budgets_are_met_within_one_percent(dense, pair):
    for size in ((224, 224), (333, 500), (800, 1333)):
        network = drop_tokens(dense, pair.pruned.arch)
        budget = count_macs(pair.pruned.arch, size)
        assert network.macs(size) == pytest.approx(budget, rel=0.01)
        assert 0 < network.backbone.setting_at(size)[1] < 1


def test_a_vit_drops_earlier_where_it_must(twelve_blocks):
    dense, pruned = twelve_blocks
    for share, start in ((2, (3, 6, 9)), (4, (2, 5, 8)), (6, (1, 4, 7))):
        network, size = drop_tokens(dense, pruned(share)), (224, 224)
        assert network.backbone.setting_at(size)[0] == start
        assert network.macs(size) == pytest.approx(count_macs(pruned(share), size), rel=0.01)
        assert network.macs(size) == pytest.approx(count_by_hand(network, size), abs=1)
    with pytest.raises(ValueError, match='cannot be met within 1 % by dropping tokens'):
        drop_tokens(dense, pruned(4), start=(3, 6, 9)).macs((224, 224))


def test_budgets_out_of_reach(dense):
    start = drop_tokens(dense, 0.5).backbone.start
    whole = count_macs(dense.arch, (64, 64))
    for macs in (whole // 50, 2 * whole):
        with pytest.raises(
            ValueError, match=rf'{macs} MACs at 64x64 cannot be met within 1 % .* the range \d+ to {whole}'
        ):
            rate_for_macs(dense.arch, (64, 64), macs, start)
    assert rate_for_macs(dense.arch, (64, 64), whole, start) > 0.9
    assert dropping_macs(dense.arch, (64, 64), 1.0, start) == whole
    assert kept_tokens(0.0, 7) == 1


def test_mistakes(dense, build, family):
    for settings, message in (
        (dict(keep_rate=0.0), 'keep_rate = 0.0'),
        (dict(keep_rate=1.1), 'keep_rate = 1.1'),
        (dict(keep_rate=0.5, fill='mean'), 'must be one of zeros, nearest, last'),
        (dict(keep_rate=0.5, start=(7,) if family in VITS else 7), 'start = '),
    ):
        with pytest.raises(ValueError, match=message):
            drop_tokens(dense, **settings)
    if family in VITS:
        with pytest.raises(ValueError, match='dinov3: queries and keys turn with their place'):
            drop_tokens(Network(build('dinov3')), 0.5)
    with pytest.raises(ValueError, match='backbone = '):
        type(drop_tokens(dense, 0.5).backbone)(nn.Identity(), 0.5)
