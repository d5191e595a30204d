"""Compensation against direct solutions and cases where the answer is known."""

from __future__ import annotations

import pytest
import torch
from fixtures.kept import first_of_every_head
from torch import nn

from upvit_mm.pruning import make_plan, prunable_dims, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.compensate import compensate, steps_of
from upvit_mm.pruning.criteria import log_posteriors
from upvit_mm.pruning.depth import branches
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.ridge import RIDGES, LayerSystem
from upvit_mm.pruning.walk import Entry

CLASSES = 4


@pytest.fixture
def dense(family, build, randomise) -> PosteriorNet:
    backbone = build(family, out_indices=(-1,))
    return PosteriorNet(backbone, randomise(nn.Linear(backbone.arch.embed_dims[-1], CLASSES), seed=7)).double()


@pytest.fixture
def images(image):
    return image(64, 64, batch=24).double()


@pytest.fixture
def sliced_by(family, build, dense):
    """``sliced_by(plan)``: the sliced network."""

    def make(plan) -> PosteriorNet:
        state = {f'backbone.{k}': v for k, v in dense.backbone.state_dict().items()}
        state |= {f'head.fc.{k}': v for k, v in dense.head.state_dict().items()}
        state = slice_state(state, plan)
        head = nn.Linear(plan.target_arch.embed_dims[-1], CLASSES)
        net = PosteriorNet(build(family, plan.target_arch, out_indices=(-1,)), head).double()
        net.backbone.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith('backbone.')})
        net.head.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith('head.fc.')})
        return net

    return make


def batches(images, size):
    return [Batch(part, range(len(part))) for part in images.split(size)]


def half_of(spec, *kinds) -> dict:
    kept = {}
    for dim in prunable_dims(spec).values():
        if dim.kind in kinds:
            kept[dim.name] = first_of_every_head(dim)
    return kept


def kl(dense, net, images) -> float:
    with torch.no_grad():
        p, q = (log_posteriors(n(images)) for n in (dense, net))
    return (p.exp() * (p - q)).sum(dim=-1).mean().item()


@pytest.mark.parametrize('kinds', [('mlp_hidden',), ('qk', 'v'), ('embed',), ('embed', 'qk', 'v', 'mlp_hidden')])
def test_it_comes_closer_to_the_dense_network(dense, sliced_by, images, kinds):
    plan = make_plan(dense.backbone.arch, half_of(dense.backbone.arch, *kinds))
    net = sliced_by(plan)
    before, left = kl(dense, net, images), {}
    compensate(dense, net, plan, batches(images, 8), report=left.__setitem__)
    assert kl(dense, net, images) < 0.5 * before
    assert list(left) == steps_of(plan, has_head=True)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in left.values())


def test_the_last_layer_follows_on_every_token(dense, sliced_by, images):
    """A detector reads the patches, which a DeiT's head does not."""
    last = Entry(len(dense.backbone.stages) - 1, 2 * len(dense.backbone.stages[-1].blocks))
    name, prefix = f'stages.{last.stage}.blocks.{last.half // 2 - 1}.mlp_hidden', dense.backbone.num_prefix_tokens
    plan = make_plan(dense.backbone.arch, {name: half_of(dense.backbone.arch, 'mlp_hidden')[name]})
    net = sliced_by(plan)

    def lacks() -> float:
        with torch.no_grad():
            ours, theirs = (n.activations(images)[0][last][0][:, prefix:] for n in (net, dense))
        assert ours.shape[1] == (64 // dense.backbone.arch.strides[-1]) ** 2
        return (ours - theirs).square().mean().item()

    before = lacks()
    compensate(dense, net, plan, batches(images, 8))
    assert lacks() < 0.65 * before


def test_removed_blocks_are_made_up_for(dense, sliced_by, images):
    depths = dense.backbone.arch.depths
    blocks = [[(0, depth - 1)] for depth in depths]
    plan = make_plan(dense.backbone.arch, {}, blocks)
    net = sliced_by(plan)
    before = kl(dense, net, images)
    compensate(dense, net, plan, batches(images, 8))
    assert kl(dense, net, images) < 0.5 * before


def test_the_batching_does_not_matter(dense, sliced_by, images):
    plan = make_plan(dense.backbone.arch, half_of(dense.backbone.arch, 'mlp_hidden', 'v'))
    nets = [sliced_by(plan) for _ in range(2)]
    for net, size in zip(nets, (24, 5)):
        compensate(dense, net, plan, batches(images, size))
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        assert torch.allclose(a, b, atol=1e-7)


def test_nothing_lacks_when_everything_is_kept(dense, sliced_by, images, identical):
    plan = make_plan(dense.backbone.arch, {}, name=dense.backbone.arch.name)
    net = sliced_by(plan)
    compensate(dense, net, plan, batches(images, 24))
    assert identical(net.state_dict(), dense.state_dict())


def test_dead_copies_are_taken_over_exactly(dense, sliced_by, images):
    """Two hidden channels that always agree: the kept one can carry both, so nothing is lost."""
    mlp = dense.backbone.stages[0].blocks[0].mlp
    with torch.no_grad():
        for layer in (getattr(mlp, name, None) for name in ('fc1', 'gate', 'dwconv')):
            if layer is None:
                continue
            layer.weight[1] = layer.weight[0]
            layer.bias[1] = layer.bias[0]
    dim = prunable_dims(dense.backbone.arch)['stages.0.blocks.0.mlp_hidden']
    plan = make_plan(dense.backbone.arch, {dim.name: [c for c in range(dim.size) if c != 1]})
    net = sliced_by(plan)
    assert kl(dense, net, images) > 1e-6
    compensate(dense, net, plan, batches(images, 24), ridge=1e-13)
    assert kl(dense, net, images) < 1e-15
    fc2 = net.backbone.stages[0].blocks[0].mlp.fc2
    assert torch.allclose(fc2.weight[:, 0], mlp.fc2.weight[:, 0] + mlp.fc2.weight[:, 1], atol=1e-6)


@torch.no_grad()
def step_by_step(dense, net, plan, images, ridge=1e-2) -> None:
    """The same from its definition: both whole networks run for every step, all images at once, in float64."""
    for name in steps_of(plan, has_head=False):
        i, j, kind = parts_of(name)
        layers = [net.backbone.get_submodule(n) for n in group_of(name, plan)]
        if kind in ('proj', 'fc2') and j is not None:
            half = 2 * j + (kind == 'fc2')
            sequence = [2 * block + (branch == 'mlp') for branch, block in branches(plan.kept_blocks[i])]
            dense_half = [*sequence[1:], 2 * plan.source_arch.depths[i]][half]
            ((x, _),) = seen_by(layers, net, images)
            theirs, ours = (n.activations(images)[0] for n in (dense, net))
            wanted = [theirs[Entry(i, dense_half)][0][..., plan.kept[f'stages.{i}.embed']]]
            now = [ours[Entry(i, half + 1)][0]]
        else:
            pair = plan.kept_blocks[i][j] if j is not None else None
            source = f'stages.{i}.blocks.{pair[kind in ("gate", "fc1", "dwconv")]}' if pair else ''
            kinds = [n.rsplit('.', 1)[1] for n in group_of(name, plan)]
            references = [n.replace(f'stages.{i}.blocks.{j}', source) for n in group_of(name, plan)]
            outputs = [out for _, out in seen_by([dense.backbone.get_submodule(n) for n in references], dense, images)]
            seen = seen_by(layers, net, images)
            x, now = seen[0][0], [out for _, out in seen]
            wanted = [kept_of(plan, i, source, k, out) for k, out in zip(kinds, outputs)]
        for layer, target, out in zip(layers, wanted, now):
            regress(layer, x, target - out, net, ridge)
    features = [
        n.backbone.read(n.backbone.leave_stage(-1, n.activations(images)[0][last_of(n)][0])) for n in (net, dense)
    ]
    lack = dense.head(features[1]) - net.head(features[0])
    add(net.head, *ridge_rows(features[0], lack, torch.ones(len(lack)).double()), ridge)


def parts_of(name: str) -> tuple[int, int | None, str]:
    parts = name.split('.')
    return int(parts[1]), int(parts[3]) if parts[2] == 'blocks' else None, parts[-1]


def group_of(name: str, plan) -> list[str]:
    """The layers that are solved together with the one that names the step."""
    parent, _, kind = name.rpartition('.')
    arch = plan.target_arch
    together = {'gate': ['gate', 'fc1'], 'q': ['q', 'k', 'v']}
    if arch.sr_ratios[parts_of(name)[0]] > 1:
        together |= {'q': ['q'], 'k': ['k', 'v']}
    elif not arch.kind.key_bias:
        together |= {'q': ['q', 'v'], 'k': ['k']}
    return [f'{parent}.{layer}' for layer in together.get(kind, [kind])]


def kept_of(plan, i: int, source: str, kind: str, out):
    dims = {'q': 'qk', 'k': 'qk', 'v': 'v'} | dict.fromkeys(('gate', 'fc1', 'dwconv'), 'mlp_hidden')
    dim = dims.get(kind)
    kept = plan.kept[f'{source}.{dim}' if dim else f'stages.{i}.embed']
    return out[:, kept] if out.ndim == 4 else out[..., kept]


def seen_by(layers, net, images) -> list:
    """Input and output of each layer while the whole network runs."""
    seen = {}
    handles = [
        layer.register_forward_hook(lambda m, args, out: seen.__setitem__(m, (args[0].clone(), out.clone())))
        for layer in layers
    ]
    net.activations(images)
    for handle in handles:
        handle.remove()
    return [seen[layer] for layer in layers]


def regress(layer, x, lack, net, ridge) -> None:
    if isinstance(layer, nn.LayerNorm):
        normal = nn.functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        for c in range(lack.shape[-1]):
            change = solution(*ridge_rows(normal[..., c : c + 1], lack[..., c : c + 1]), ridge)
            layer.weight[c] += change[0, 0]
            layer.bias[c] += change[1, 0]
    elif isinstance(layer, nn.Conv2d):
        patches = nn.functional.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).mT
        lack = lack.flatten(2).mT
        if layer.groups == 1:
            add(layer, *ridge_rows(patches, lack), ridge)
            return
        for c, taps in enumerate(patches.unflatten(-1, (layer.groups, -1)).unbind(-2)):
            change = solution(*ridge_rows(taps, lack[..., c : c + 1]), ridge)
            layer.weight[c] += change[:-1, 0].view_as(layer.weight[c])
            layer.bias[c] += change[-1, 0]
    else:
        classes = net.backbone.arch.kind.num_class_tokens
        weights = torch.ones(lack.shape[:2], dtype=torch.float64)
        weights[:, :classes] = (lack.shape[1] - classes) ** 0.5
        add(layer, *ridge_rows(x, lack, weights, ones=layer.bias is not None), ridge)


def ridge_rows(x, lack, weights=None, ones=True):
    weights = torch.ones(lack.shape[:-1], dtype=torch.float64) if weights is None else weights
    x, weights = torch.cat([x, x.new_ones(*x.shape[:-1], int(ones))], dim=-1), weights[..., None]
    return (x * weights).flatten(0, -2), (lack * weights).flatten(0, -2)


def solution(x, lack, ridge):
    penalty = (ridge * x.square().mean(dim=0).mean() * len(x)) ** 0.5 * torch.eye(x.shape[1], dtype=torch.float64)
    targets = torch.cat([lack, torch.zeros(len(penalty), lack.shape[-1], dtype=torch.float64)])
    return torch.linalg.lstsq(torch.cat([x, penalty]), targets).solution


def add(layer, x, lack, ridge) -> None:
    change = solution(x, lack, ridge)
    inputs = layer.weight[0].numel()
    layer.weight += change[:inputs].T.reshape(layer.weight.shape)
    if layer.bias is not None:
        layer.bias += change[inputs]


def last_of(net) -> Entry:
    return Entry(len(net.backbone.stages) - 1, 2 * len(net.backbone.stages[-1].blocks))


def test_one_pass_gives_what_a_pass_for_each_step_gives(dense, sliced_by, images):
    depths = dense.backbone.arch.depths
    kept = half_of(dense.backbone.arch, 'embed', 'qk', 'v', 'mlp_hidden')
    blocks = [[(0, min(1, depth - 1)), *((j, j) for j in range(2, depth))] for depth in depths]
    plan = make_plan(dense.backbone.arch, kept, blocks)
    fast, slow = sliced_by(plan), sliced_by(plan)
    compensate(dense, fast, plan, batches(images, 5), ridge=1e-2)
    step_by_step(dense, slow, plan, images)
    for (name, a), b in zip(fast.named_parameters(), slow.parameters()):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9), name


def test_the_ridge_is_the_one_that_explains_most_of_unseen_images(dense, sliced_by, images):
    """By brute force, for one layer: solve on even images, look at odd ones, and the other way round."""
    plan = make_plan(dense.backbone.arch, half_of(dense.backbone.arch, 'mlp_hidden', 'embed'))
    net, layer = sliced_by(plan), 'stages.0.blocks.0.attn.v'
    (x, _), (_, out) = (seen_by([n.backbone.get_submodule(layer)], n, images)[0] for n in (net, dense))
    lack = out - net.backbone.get_submodule(layer)(x)
    weights = torch.ones(lack.shape[:2], dtype=torch.float64)
    classes = net.backbone.arch.kind.num_class_tokens
    weights[:, :classes] = (lack.shape[1] - classes) ** 0.5
    halves = [ridge_rows(x[k::2], lack[k::2], weights[k::2]) for k in range(2)]

    def unseen(ridge: float) -> float:
        pairs = (halves, halves[::-1])
        return sum((b[1] - b[0] @ solution(*a, ridge)).square().sum().item() for a, b in pairs)

    system = LayerSystem([net.backbone.get_submodule(layer)])
    for part in range(0, 24, 5):
        some = slice(part, part + 5)
        system.add(x[some], [lack[some]], weights[some])
    losses = {ridge: unseen(ridge) for ridge in RIDGES}
    assert system._best() == min(RIDGES, key=losses.get)
    expected = solution(*ridge_rows(x, lack, weights), system._best())
    before = net.backbone.get_submodule(layer).weight.clone()
    with torch.no_grad():
        system.solve(None, layer)
    assert torch.allclose(net.backbone.get_submodule(layer).weight - before, expected[:-1].T, rtol=1e-7, atol=1e-9)


def test_it_goes_on_after_a_layer(dense, sliced_by, images):
    """Layers that are corrected already are left alone, and the others come out the same."""
    plan = make_plan(dense.backbone.arch, half_of(dense.backbone.arch, 'mlp_hidden', 'v'))
    whole, cut = sliced_by(plan), sliced_by(plan)
    compensate(dense, whole, plan, batches(images, 8))
    finished = []

    def stop(name, left):
        finished.append(name)
        if len(finished) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compensate(dense, cut, plan, batches(images, 8), report=stop)
    told = {}
    compensate(dense, cut, plan, batches(images, 8), report=told.__setitem__, done=finished)
    assert [name for name, left in told.items() if left is None] == finished
    for a, b in zip(whole.parameters(), cut.parameters()):
        assert torch.equal(a, b)
    compensate(dense, cut, plan, batches(images, 8), done=list(told))  # all of it was done
    for a, b in zip(whole.parameters(), cut.parameters()):
        assert torch.equal(a, b)


def test_bad_input(dense, sliced_by, images):
    plan = make_plan(dense.backbone.arch, half_of(dense.backbone.arch, 'v'))
    net = sliced_by(plan)
    with pytest.raises(ValueError, match='ridge = 0'):
        compensate(dense, net, plan, batches(images, 8), ridge=0)
    with pytest.raises(ValueError, match='no images'):
        compensate(dense, net, plan, [])
    with pytest.raises(ValueError, match='the sliced network has another architecture'):
        compensate(dense, dense, plan, batches(images, 8))


def test_too_few_images_are_said(dense, sliced_by, images, caplog):
    plan = make_plan(dense.backbone.arch, half_of(dense.backbone.arch, 'v'))
    with caplog.at_level('WARNING', 'upvit_mm'):
        compensate(dense, sliced_by(plan), plan, batches(images[:3], 3))
    width = dense.backbone.arch.embed_dims[-1] + 1
    assert f'compensation of head has 3 samples for {width} inputs' in caplog.text
