"""The pruning benchmark measures what it says."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from torch import nn

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.benchmark import pruning
from upvit_mm.benchmark.pruning import (
    agreement,
    benchmark_pruning,
    kl_by_rebuilding,
    scaled,
    time_all_channels,
    time_candidates,
    time_large_network,
)
from upvit_mm.pruning import prunable_dims
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.importance import exact_scores
from upvit_mm.pruning.posterior import PosteriorNet


@pytest.fixture
def net(family, stock_arch, build, randomise):
    backbone = build(family, stock_arch(family), out_indices=(-1,))
    return PosteriorNet(backbone, randomise(nn.Linear(backbone.arch.embed_dims[-1], 4), seed=7))


@pytest.fixture
def state(net):
    state = {f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}
    return state | {f'head.fc.{k}': v for k, v in net.head.state_dict().items()}


@pytest.fixture
def batch(image):
    return Batch(image(64, 64, batch=3), [0, 1, 2])


def test_the_rebuilt_network_scores_as_ours_does(net, state, batch):
    """Both sides of the comparison compute the same number."""
    dim = prunable_dims(net.backbone.arch)['stages.0.blocks.0.mlp_hidden']
    ours = exact_scores(net, [batch], [dim.name])[dim.name]
    for channel in (0, 5):
        assert kl_by_rebuilding(net, state, dim, channel, batch) == pytest.approx(ours[channel].item(), rel=1e-3)


def test_every_dim_is_timed(net, state, batch):
    rows = time_candidates(net, state, batch, repeats=1)
    assert set(rows['by dim']) == set(prunable_dims(net.backbone.arch))
    assert time_all_channels(net, batch)['images'] == 3


def test_large_network_extrapolates_by_size(tmp_path, stock_arch):
    arch = ArchSpec.from_dict(stock_arch('deit', depths=[2]))
    arch.save_json(tmp_path / 'arch.json')
    results = time_large_network(str(tmp_path / 'arch.json'), images=2, classes=7, candidates=5)
    assert results['channels'] == sum(dim.size for dim in prunable_dims(arch).values())
    assert results['timed candidates'] == 5 * len(prunable_dims(arch))


@pytest.mark.parametrize('kind', ['name', 'path', 'mapping'])
def test_a_config_may_name_its_arch(kind, tmp_path, monkeypatch):
    built = []

    class EnoughError(Exception):
        pass

    def build(arch, state):
        built.append(arch)
        raise EnoughError

    monkeypatch.setattr(pruning, 'load_classifier', lambda path, **settings: {})
    monkeypatch.setattr(pruning, 'build_net', build)
    spec = get_arch('deit-tiny')
    arch = {'name': 'deit-tiny', 'path': str(spec.save_json(tmp_path / 'arch.json')), 'mapping': spec.to_dict()}[kind]
    with pytest.raises(EnoughError):
        benchmark_pruning(Config({'model': {'backbone': {'arch': arch}}}), 'dense.pth')
    assert built == [spec]


def test_agreement():
    a = torch.tensor([0.1, 5.0, 2.0, 9.0])
    swapped = torch.tensor([0.1, 2.0, 5.0, 9.0])  # two neighbours: 1 - 6 * 2 / (4 * 15)
    result = agreement({'x': a, 'y': a, 'z': a}, {'x': a, 'y': swapped, 'z': -a})
    assert result['median'] == pytest.approx(0.8)
    assert (result['worst dim'], result['worst']) == ('z', pytest.approx(-1))


def test_scaled(family, net):
    arch = net.backbone.arch
    small = scaled(arch, 0.5, 0.75)
    assert small.embed_dims == tuple(w // 2 for w in arch.embed_dims)
    assert small.mlp_hidden_dims == tuple(tuple(3 * w // 4 for w in stage) for stage in arch.mlp_hidden_dims)
    assert (small.num_heads, small.qk_scales) == (arch.num_heads, arch.qk_scales)
