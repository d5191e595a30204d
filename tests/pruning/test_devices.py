"""What a GPU would show: all work is done where the network is, and few looks at values stop it.

On a pretended GPU, or with ``--device cuda`` on a real one.
"""

from __future__ import annotations

import copy

import pytest
import torch
from fixtures.kept import first_of_every_head
from scipy.stats import spearmanr
from torch import nn

from upvit_mm.pruning import make_plan, prunable_dims, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.compensate import compensate
from upvit_mm.pruning.criteria import ReadTokensChange, token_deviations
from upvit_mm.pruning.depth_scores import distance_sums
from upvit_mm.pruning.full_precision import SETTINGS, full_precision
from upvit_mm.pruning.head_axes import turn_heads
from upvit_mm.pruning.importance import POSTERIOR, exact_sums, fisher_scores, fisher_sums, taylor_sums
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.stream_axes import turn_stream
from upvit_mm.pruning.token_net import TokenNet

CLASSES = 4


@pytest.fixture(params=['deit', 'pvtv2', 'dinov3'])  # class tokens; convolutions; channels in pairs
def family(request) -> str:
    return request.param


@pytest.fixture
def net(family, build, randomise) -> PosteriorNet:
    backbone = build(family, out_indices=(-1,))
    return PosteriorNet(backbone, randomise(nn.Linear(backbone.arch.embed_dims[-1], CLASSES), seed=7)).double()


@pytest.fixture
def images(image):
    return image(64, 64, batch=4).double()


def close(found: dict, expected: dict) -> bool:
    names = expected.keys()
    return found.keys() == names and all(torch.allclose(found[n], expected[n], rtol=1e-8, atol=1e-12) for n in names)


@pytest.mark.parametrize('sums_of', [exact_sums, fisher_sums, taylor_sums])
@pytest.mark.parametrize('criterion', ['posterior', 'tokens'])
def test_scores_wait_once(net, images, gpu, sums_of, criterion):
    """Once for a batch, and the exact score once for a dim."""
    some = ['stages.0.embed', *(f'stages.0.blocks.0.{kind}' for kind in ('qk', 'v', 'mlp_hidden'))]
    dims = prunable_dims(net.backbone.arch)
    settings = {'channels': {name: torch.arange(0, dims[name].size, 5) for name in some}}
    if sums_of is not taylor_sums:
        settings['criterion'] = POSTERIOR
        if criterion == 'tokens':
            net = TokenNet(net.backbone)
            settings['criterion'] = ReadTokensChange(token_deviations(net, [Batch(images, range(4))]))
    expected = dict(sums_of(net, Batch(images, range(4)), **settings))
    with gpu() as seen:
        net.cuda()
        batch = Batch(images.to('cuda'), range(4))
        if criterion == 'tokens' and sums_of is not taylor_sums:
            settings['criterion'] = ReadTokensChange(token_deviations(net, [batch]))
        seen.waits.clear()
        found = dict(sums_of(net, batch, **settings))
        assert seen.waits.total() == (len(some) if sums_of is exact_sums else 1)
    assert close(found, expected)


def test_distances_of_blocks_wait_once(net, images, gpu):
    closed = [['stages.0.blocks.0.attn', 'stages.0.blocks.0.mlp'], ['stages.0.blocks.0.mlp']]
    expected = distance_sums(net, Batch(images, range(4)), closed, POSTERIOR)
    with gpu() as seen:
        net.cuda()
        batch = Batch(images.to('cuda'), range(4))
        seen.waits.clear()
        found = distance_sums(net, batch, closed, POSTERIOR)
        assert seen.waits.total() == 1
    assert torch.allclose(found, expected, rtol=1e-9)


def test_deviations_wait_at_the_end(net, images, gpu):
    """Padding around a picture makes no difference."""
    net = TokenNet(net.backbone)
    parts = [(images[:3], None), (images[3:], [(64, 40)])]
    expected = token_deviations(net, [Batch(x, range(len(x)), sizes=sizes) for x, sizes in parts])
    with gpu() as seen:
        net.cuda()
        batches = [Batch(x.to('cuda'), range(len(x)), sizes=sizes) for x, sizes in parts]
        seen.waits.clear()
        found = token_deviations(net, batches)
        assert seen.waits.total() == len(expected) * len(batches)
        found = [deviation.cpu() for deviation in found]
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize('turn', [turn_heads, turn_stream])
def test_axes_are_found_on_the_device(family, net, images, gpu, turn):
    if family == 'pvtv2' and turn is turn_stream:
        return  # its stream is read by more than norms
    state = {f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}
    state |= {f'head.fc.{k}': v for k, v in net.head.state_dict().items()}
    expected = turn(net, state, [Batch(images, range(4))])
    state = {key: tensor.clone() for key, tensor in state.items()}  # it stays on the host
    with gpu() as seen:
        net.cuda()
        batches = [Batch(x.to('cuda'), range(2)) for x in images.split(2)]
        found = turn(net, state, batches)
        assert seen.waits.total() > 0
    for key in expected:  # a direction may point to the other side
        assert found[key].device.type == 'cpu'
        assert torch.allclose(found[key].abs(), expected[key].abs(), rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize('memory', [0.0, 1.0])
def test_compensation_on_the_device_and_from_the_host(family, build, net, images, gpu, memory):
    """With room for them, activations never go to the host."""
    kept = {d.name: first_of_every_head(d) for d in prunable_dims(net.backbone.arch).values() if d.kind != 'embed'}
    plan = make_plan(net.backbone.arch, kept)
    state = slice_state({f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}, plan)
    small = PosteriorNet(build(family, plan.target_arch, out_indices=(-1,)), copy.deepcopy(net.head)).double()
    small.backbone.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    other = copy.deepcopy(small)
    compensate(net, small, plan, [Batch(x, range(2)) for x in images.split(2)], ridge=1e-2)
    with gpu() as seen:
        net.cuda()
        other.cuda()
        batches = [Batch(x.to('cuda'), range(2)) for x in images.split(2)]
        seen.waits.clear()
        told = []
        report = lambda name, left: told.append(name)  # noqa: E731
        compensate(net, other, plan, batches, ridge=1e-2, report=report, memory=memory)
        waits = seen.waits.total() / len(told)
        assert waits < 12 if memory else waits > 4
        found = {key: tensor.cpu() for key, tensor in other.state_dict().items()}
    assert close(found, small.state_dict())


# ------------------------------------------------------------------ precision


def test_fisher_in_bf16_ranks_like_float32(net, images, device):
    net = net.float().to(device)
    batch = Batch(images.float().to(device), range(4))
    lower, full = (fisher_scores(net, [batch], draws=8, amp=amp) for amp in ('bf16', None))
    wide = [name for name in full if len(full[name]) > 20]
    ranks = sorted(spearmanr(full[name], lower[name]).statistic for name in wide)
    assert ranks[0] > 0.9
    assert ranks[0] < 1 - 1e-9  # it was another precision


def test_full_precision_gives_the_settings_back():
    """The older names and the newer ones."""

    def told() -> list:
        values = []
        for owner, name, _ in SETTINGS:
            try:
                values.append(getattr(owner, name))
            except (AttributeError, RuntimeError):
                values.append(None)
        return values

    try:
        for chosen in ('high', 'highest'):
            torch.set_float32_matmul_precision(chosen)
            before = told()
            with full_precision():
                assert all(now in (None, full) for now, (_, _, full) in zip(told(), SETTINGS))
            assert told() == before
            assert before[:2] == [chosen, True]
    finally:
        torch.set_float32_matmul_precision('highest')
