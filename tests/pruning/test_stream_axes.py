"""A residual stream in its principal axes: the same network, and exact without some directions."""

from __future__ import annotations

import itertools

import pytest
import torch
from fixtures.kept import of_every_head
from torch import Tensor, nn

from upvit_mm.pruning import PrunePlan, importance, make_plan, prunable_dims, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.compensate import compensate
from upvit_mm.pruning.cosines import cosines, narrowing
from upvit_mm.pruning.criteria import ReadTokensChange, token_deviations
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.head_axes import turn_heads
from upvit_mm.pruning.importance import exact_scores, fisher_scores
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.stream_axes import reading_of, turn_stream
from upvit_mm.pruning.token_net import TokenNet

EMBED, NORM = 'stages.0.embed', 'backbone.stages.0.norm'
CLASSES = 4


@pytest.fixture
def images(image) -> Tensor:
    return image(64, 64, batch=8).double()


@pytest.fixture(params=[('deit', 0), ('deit', 2), ('dinov2', 2), ('dinov3', 0)], ids=str)
def family_and_window(request) -> tuple[str, int]:
    return request.param


@pytest.fixture
def family(family_and_window) -> str:
    return family_and_window[0]


@pytest.fixture
def settings(family_and_window) -> dict:
    window = family_and_window[1]
    return dict(window_size=window) if window else {}


@pytest.fixture
def dense(build, family, settings, randomise) -> PosteriorNet:
    return PosteriorNet(build(family, **settings), randomise(nn.Linear(45, CLASSES), seed=7)).double()


@pytest.fixture
def turned(build, settings, dense, images) -> PosteriorNet:
    return load(build, settings, turn_stream(dense, state_of(dense), batches(images)), dense.backbone.arch)


def batches(images: Tensor) -> list[Batch]:
    return [Batch(part, range(len(part))) for part in images.split(3)]


def state_of(net: PosteriorNet) -> dict[str, Tensor]:
    state = {f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}
    return state | {f'head.fc.{k}': v for k, v in net.head.state_dict().items()}


def load(build, settings, state, arch) -> PosteriorNet:
    net = PosteriorNet(build(arch.family, arch, **settings), nn.Linear(arch.embed_dims[0], CLASSES)).double()
    net.backbone.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith('backbone.')})
    net.head.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith('head.fc.')})
    return net


def basis_of(state: dict, turned: dict) -> Tensor:
    """Principal directions ``(C, C-1)``, from what the patch embedding writes before and after."""
    before, after = (s['backbone.stages.0.patch_embed.proj.weight'].flatten(1) for s in (state, turned))
    return (cosines(len(before))[1:] @ after @ torch.linalg.pinv(before)).T


def half_of(arch, embed=17, share=0.5) -> dict[str, Tensor]:
    """The first half of every head and of the hidden channels, and directions here and there."""
    kept = {}
    for dim in prunable_dims(arch).values():
        part = dim.size // dim.groups // dim.unit
        kept[dim.name] = torch.tensor(of_every_head(dim, range(min(int(share * part) + 1, part))))
    more = torch.randperm(arch.embed_dims[0] - 1, generator=torch.Generator().manual_seed(0))[: embed - 1] + 1
    return kept | {EMBED: torch.cat([torch.zeros(1, dtype=torch.int64), more.sort().values])}


def gates_of(plan: PrunePlan) -> dict[str, Tensor]:
    dims = prunable_dims(plan.source_arch)
    return {n: torch.zeros(d.size, dtype=torch.float64).index_fill(0, plan.kept[n], 1.0) for n, d in dims.items()}


def test_turned_equals_dense(dense, turned, image, images, distance):
    state, new = state_of(dense), state_of(turned)
    basis = basis_of(state, new)
    assert torch.allclose(basis.T @ basis, torch.eye(44, dtype=torch.float64), atol=1e-10)
    assert basis.sum(dim=0).abs().max() < 1e-10
    with torch.no_grad():
        for x in (images, image(96, 80).double()):
            assert distance(turned(x), dense(x)) < 1e-10
            (map_,), (wanted,) = turned.backbone(x), dense.backbone(x)
            assert distance(map_, wanted) > 0.1  # it is in another basis,
            reading = reading_of(state, NORM, basis)  # which this leads back from
            assert distance(torch.einsum('dc,bcyx->bdyx', reading, map_), wanted) < 1e-10


def test_norms_are_one_and_the_mean_is_out(dense, turned, images):
    for key, value in state_of(turned).items():
        if '.norm' in key:
            assert torch.equal(value, torch.ones_like(value))
    with torch.no_grad():
        theirs, ours = (net.activations(images)[0] for net in (dense, turned))
    for entry, (tokens, _grid) in ours.items():
        if entry.half >= 0:
            assert tokens.mean(dim=-1).abs().max() < 1e-12 * tokens.abs().max()
            assert torch.allclose(tokens.var(dim=-1), theirs[entry][0].var(dim=-1), rtol=1e-10)


def test_what_does_not_touch_the_stream_stays(dense, images):
    state = state_of(dense)
    new = turn_stream(dense, state, batches(images))
    readers_and_writers = ('q.weight', 'k.weight', 'v.weight', 'fc1.weight', 'gate.weight', 'proj.weight', 'proj.bias')
    tokens = ('cls_token', 'reg_token', 'pos_embed')
    touched = (*readers_and_writers, 'fc2.weight', 'fc2.bias', *tokens, 'head.fc.weight')
    for key in state:
        changes = key.endswith(touched) or '.norm' in key
        assert (new[key] is not state[key]) == changes
        assert new[key].shape == state[key].shape


def test_directions_that_matter_come_first(dense, turned, images, distance):
    """Half by what the stream carries, half by what is read: the front beats the back by far."""
    found = []
    for directions in (range(1, 23), range(23, 45)):
        gate = torch.zeros(45, dtype=torch.float64)
        gate[[0, *directions]] = 1
        with torch.no_grad(), gates(turned.backbone, {EMBED: gate}, {EMBED}):
            found.append(distance(turned(images), dense(images)))
    assert found[0] < 0.6 * found[1]


def test_few_pictures_and_narrow_readers(build, image, distance):
    """Most directions are carried and used by nothing; the mean is told from them all the same."""
    arch = dict(family='deit', embed_dims=[45], depths=[1], num_heads=1, mlp_hidden_dims=3, img_size=64)
    net = TokenNet(build('deit', arch | dict(qk_dims=2, v_dims=2))).double()
    state = {f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}
    new = turn_stream(net, state, batches(image(16, 32, batch=1).double()))
    basis = basis_of(state, new)
    assert torch.allclose(basis.T @ basis, torch.eye(44, dtype=torch.float64), atol=1e-9)
    assert basis.sum(dim=0).abs().max() < 1e-9
    reading, x = reading_of(state, NORM, basis), image(64, 80).double()
    with torch.no_grad():
        (wanted,) = net.backbone(x)
        net.backbone.load_state_dict({k[9:]: v for k, v in new.items()})
        (map_,) = net.backbone(x)
    assert distance(torch.einsum('dc,bcyx->bdyx', reading, map_), wanted) < 1e-9


def test_readers_that_read_nothing(dense, images):
    """A new head of zeros, and a block that is switched off."""
    with torch.no_grad():
        dense.head.weight.zero_()
        dense.backbone.stages[0].blocks[1].norm2.weight.zero_()
    new = turn_stream(dense, state_of(dense), batches(images))
    assert all(bool(torch.isfinite(value).all()) for value in new.values())


# ------------------------------------------------------------------ directions


def test_sliced_equals_gated(build, settings, turned, image, images, distance):
    """All dims at once, and the streams agree at every place."""
    plan = make_plan(turned.backbone.arch, half_of(turned.backbone.arch), turned=[EMBED])
    assert plan.target_arch.embed_dims == (17,)
    sliced = load(build, settings, slice_state(state_of(turned), plan), plan.target_arch)
    _, read = narrowing(plan.kept[EMBED], 45)
    with torch.no_grad():
        for x in (images, image(96, 80).double()):
            with gates(turned.backbone, gates_of(plan), plan.turned):
                passed, logits = turned.activations(x)
                (map_,) = turned.backbone(x)
            small, found = sliced.activations(x)
            assert distance(found, logits) < 1e-10
            assert distance(torch.einsum('dc,bcyx->bdyx', read, sliced.backbone(x)[0]), map_) < 1e-10
            assert distance(logits, turned(x)) > 1e-3  # the plan does change something
            assert small.keys() == passed.keys()
            for entry, (tokens, grid) in small.items():
                if entry.half >= 0:
                    assert distance(tokens, plan.embedding(0, passed[entry][0])) < 1e-10
                    assert grid == passed[entry][1]


def test_keeping_all_gives_the_same_network(turned):
    plan = make_plan(turned.backbone.arch, {}, name=turned.backbone.arch.name, turned=[EMBED])
    assert plan.target_arch == turned.backbone.arch
    state = state_of(turned)
    for key, value in slice_state(state, plan).items():
        assert torch.allclose(value, state[key], rtol=0, atol=1e-12)


def test_channels_are_an_embedding_by_their_index(turned, tokens):
    plan = make_plan(turned.backbone.arch, {EMBED: [0, 3, 4]})
    assert torch.equal(plan.embedding(0, tokens(2, 3, 45)), tokens(2, 3, 45)[..., [0, 3, 4]])


def test_pruned_and_turned_again(build, settings, turned, image, images, distance):
    """A pruned network is one like any other: its heads and its stream turn, and lose directions, again."""
    first = make_plan(turned.backbone.arch, half_of(turned.backbone.arch, embed=30, share=0.7), turned=[EMBED])
    once = load(build, settings, slice_state(state_of(turned), first), first.target_arch)
    state = turn_heads(once, state_of(once), batches(images))
    again = load(build, settings, state, first.target_arch)
    again = load(build, settings, turn_stream(again, state, batches(images)), first.target_arch)
    second = make_plan(first.target_arch, half_of(first.target_arch, embed=12), turned=[EMBED])
    twice = load(build, settings, slice_state(state_of(again), second), second.target_arch)
    assert twice.backbone.arch.embed_dims == (12,)
    x = image(64, 80).double()
    with torch.no_grad():
        with gates(turned.backbone, gates_of(first), first.turned):
            assert distance(again(x), turned(x)) < 1e-10
        with gates(again.backbone, gates_of(second), second.turned):
            assert distance(twice(x), again(x)) < 1e-10


def test_compensation_keeps_the_mean_out(build, settings, turned, images):
    """What lacks has no mean, so its correction has none; the network may be pruned by directions again."""
    plan = make_plan(turned.backbone.arch, {EMBED: range(22)}, turned=[EMBED])
    net = load(build, settings, slice_state(state_of(turned), plan), plan.target_arch)
    lacks = []
    for repaired in (False, True):
        if repaired:
            compensate(turned, net, plan, batches(images))
        with torch.no_grad():
            passed, logits = net.activations(images)
            lacks.append((logits - turned(images)).square().sum().item())
        for entry, (tokens, _grid) in passed.items():
            if entry.half >= 0:
                assert tokens.mean(dim=-1).abs().max() < 1e-12 * tokens.abs().max()
    assert lacks[1] < 0.4 * lacks[0]


# ---------------------------------------------------------------------- scores


@pytest.fixture
def net(turned) -> TokenNet:
    net = TokenNet(turned.backbone)
    net.turned = frozenset([EMBED])
    return net


def test_exact_scores_are_changes_of_the_network_without_a_direction(build, settings, turned, net, images):
    (batch,) = batches(images[:3])
    deviations = token_deviations(net, [batch])
    scores = exact_scores(net, [batch], [EMBED], criterion=ReadTokensChange(deviations))[EMBED]
    with torch.no_grad():
        (before,) = net.backbone(batch.images)
        for c in (1, 20, 44):
            plan = make_plan(net.backbone.arch, {EMBED: [k for k in range(45) if k != c]}, turned=[EMBED])
            small = load(build, settings, slice_state(state_of(turned), plan), plan.target_arch)
            _, read = narrowing(plan.kept[EMBED], 45)
            after = torch.einsum('dc,bcyx->bdyx', read, small.backbone(batch.images)[0])
            change = ((after - before) / deviations[0][:, None, None]).square().sum(dim=1).mean()
            assert scores[c].item() == pytest.approx(change.item(), rel=1e-6)
    assert scores[0].item() == pytest.approx(scores[1:].sum().item() + 1)


def test_fisher_expects_the_squared_slope_of_directions(net, images, monkeypatch):
    """Over all signs of a few values, against small steps of one gate; the other values are silent."""
    some = torch.tensor([0, 7, 100])
    every = torch.tensor(list(itertools.product((-1, 1), repeat=len(some))))

    def signs(numbers, draws, size, seed, device):
        values = torch.zeros(len(every), len(numbers), size, dtype=torch.int8)
        values[:, :, some] = every[:, None].to(torch.int8)
        return values

    monkeypatch.setattr(importance, '_signs', signs)
    (batch,) = batches(images[:2])
    criterion = ReadTokensChange(token_deviations(net, [batch]))
    scores = fisher_scores(net, [batch], [EMBED], criterion=criterion, draws=len(every))[EMBED]
    for c in (1, 5, 30):
        values = []
        for step in (-1e-4, 1e-4):
            gate = torch.ones(45, dtype=torch.float64)
            gate[c] += step
            with torch.no_grad(), net.gated({EMBED: gate}):
                values.append(criterion.values(net(batch.images), batch)[:, some])
        slope = (values[1] - values[0]) / 2e-4
        assert scores[c].item() == pytest.approx(slope.square().sum().item() / 2, rel=1e-5)


def test_exact_before_fisher(net, images):
    """Both need the cosines, one of them in inference mode."""
    cosines.cache_clear()
    criterion = ReadTokensChange(token_deviations(net, batches(images[:1])))
    for scores_of in (exact_scores, fisher_scores):
        assert scores_of(net, batches(images[:1]), [EMBED], criterion=criterion)[EMBED].min() >= 0


# ------------------------------------------------------------------- bad input


def test_no_pictures(dense):
    with pytest.raises(ValueError, match='there are no images: the principal axes of a stream'):
        turn_stream(dense, state_of(dense), [])
    assert not any(module._forward_pre_hooks for module in dense.modules())


def test_a_pvtv2_cannot_be_rotated(build, images):
    net = TokenNet(build('pvtv2')).double()
    with pytest.raises(ValueError, match="embed = 'rotate': a stage of a PVTv2 starts with a LayerNorm whose gains"):
        turn_stream(net, {}, batches(images), stage=1)


def test_maps_from_the_middle_cannot_be_rotated(build, images):
    """No norm stands before them, and their mean would be lost."""
    net = TokenNet(build('deit', out_indices=(1, 4))).double()
    with pytest.raises(ValueError, match='the map after block 1 of stage 0 is the residual stream itself'):
        turn_stream(net, {}, batches(images))


def test_a_network_that_is_not_turned_loses_no_directions(dense, turned):
    plan = make_plan(dense.backbone.arch, {EMBED: range(9)}, turned=[EMBED])
    with pytest.raises(ValueError, match=r'norm1?\.weight is not 1: the plan keeps directions of a turned network'):
        slice_state(state_of(dense), plan)
    state = state_of(turned)
    state['backbone.stages.0.norm.bias'] = torch.zeros(45)
    with pytest.raises(ValueError, match=r'stages.0.norm.bias is not 1'):
        slice_state(state, plan)


def test_a_checkpoint_of_another_arch_is_refused(turned):
    plan = make_plan(turned.backbone.arch, {EMBED: range(9)}, turned=[EMBED])
    state = state_of(turned)
    backbone = {key: value for key, value in state.items() if not key.startswith('head.')}
    assert slice_state(backbone, plan).keys() == backbone.keys()  # a backbone alone
    with pytest.raises(ValueError, match=r'cls_token has shape \(1, 1, 44\): stages.0.embed of the plan has 45'):
        slice_state(state | {'backbone.cls_token': torch.zeros(1, 1, 44)}, plan)
    del state['backbone.stages.0.norm.weight']
    with pytest.raises(ValueError, match=r'has no backbone.stages.0.norm.weight'):
        slice_state(state, plan)
