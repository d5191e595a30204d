"""The benchmark of features measures what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from upvit_mm.arch import ArchSpec
from upvit_mm.benchmark.features import (
    CLASS_TOKEN,
    PATCHES,
    TEMPERATURE,
    FeatureNet,
    FeatureSettings,
    benchmark_features,
    features_of,
    nearest,
    networks_of,
    pictures_of,
    probe,
    rows_of,
    tables_of,
)
from upvit_mm.checkpoints import save_checkpoint
from upvit_mm.pruning.batch import Batch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def network(build, tiny_arch, tmp_path):
    """``network(family, name)``: the text of a network that is written to disk."""

    def make(family: str, name: str, seed: int = 0) -> str:
        spec = ArchSpec.from_dict(tiny_arch(family))
        spec.save_json(tmp_path / f'{name}.json')
        save_checkpoint(tmp_path / f'{name}.pth', build(family, seed=seed).state_dict())
        return f'{name}={tmp_path / name}.json,{tmp_path / name}.pth'

    return make


@pytest.fixture
def clouds():
    """Features and labels of three classes around far centres, drawn twice."""

    def make(seed: int, spread: float, n: int = 60):
        g = torch.Generator().manual_seed(seed)
        centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        labels = torch.arange(n) % 3
        return centres[labels] + spread * torch.randn(n, 8, generator=g, dtype=torch.float64), labels

    return make


@pytest.fixture
def data(digits_folder) -> str:
    return str(digits_folder / 'classification')


def test_neighbours_against_brute_force(clouds):
    (train, labels), (val, _) = clouds(0, 1.0), clouds(1, 1.0, 20)
    expected = []
    for x in val:
        cosines = torch.tensor([F.cosine_similarity(x, y, dim=0) for y in train], dtype=torch.float64)
        votes = [0.0, 0.0, 0.0]
        for place in sorted(range(60), key=lambda k: -cosines[k])[:7]:
            votes[labels[place]] += (cosines[place] / TEMPERATURE).exp().item()
        expected.append(votes.index(max(votes)))
    assert nearest(train, labels, val, 7).tolist() == expected
    assert len(set(expected)) == 3
    assert nearest(10 * train, labels, 0.1 * val, 7).tolist() == expected  # lengths do not count


def test_one_neighbour_decides_alone_and_near_ones_count_more():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    labels, val = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.8]], dtype=torch.float64)
    assert nearest(train, labels, val, 1).tolist() == [0]
    assert nearest(train, labels, val, 3).tolist() == [0]  # two votes, but from far
    assert nearest(train, labels, torch.tensor([[1.0, 0.99]], dtype=torch.float64), 3).tolist() == [1]


def test_the_probe_separates_and_is_repeatable(clouds):
    (train, labels), (val, truth) = clouds(0, 0.1), clouds(1, 0.1)
    scales = torch.logspace(-3, 3, 8, dtype=torch.float64)  # of channels, which are standardised
    assert torch.equal(probe(train, labels, val), truth)
    assert torch.equal(probe(train * scales + 5, labels, val * scales + 5), truth)
    noisy, other = clouds(2, 3.0)[0], clouds(3, 3.0)[0]
    assert torch.equal(probe(noisy, labels, other), probe(noisy, labels, other))
    assert torch.equal(probe(torch.ones_like(train), labels, val), probe(torch.ones_like(train), labels, other))


def test_the_probe_is_a_logistic_regression(clouds):
    """Its guesses are those of plain gradient descent on the same loss."""
    (train, labels), (val, _) = clouds(0, 2.0), clouds(1, 2.0)
    mean, std = train.mean(0), train.std(0, correction=0)
    x, weights, bias = (train - mean) / std, torch.zeros(8, 3).double(), torch.zeros(3).double()
    for _ in range(3000):
        wrong = ((x @ weights + bias).softmax(1) - F.one_hot(labels, 3)) / len(x)
        weights -= 0.3 * (x.T @ wrong + 0.02 * weights)
        bias -= 0.3 * wrong.sum(0)
    assert torch.equal(probe(train, labels, val), ((val - mean) / std @ weights + bias).argmax(1))


@pytest.mark.parametrize('family', ['dinov2', 'dinov3', 'pvtv2'])
def test_features_are_those_of_the_backbone(family, build, image):
    backbone = build(family)
    x = image(64, 48, batch=3)
    found = features_of(FeatureNet(backbone), [Batch(x[:2], (0, 1)), Batch(x[2:], (2,))])
    with torch.no_grad():
        backbone.out_indices = (len(backbone.arch.depths) - 1 if family == 'pvtv2' else backbone.arch.depths[0] - 1,)
        torch.testing.assert_close(found[PATCHES].float(), backbone(x)[-1].mean((2, 3)), rtol=1e-4, atol=1e-5)
        assert (CLASS_TOKEN in found) == (family != 'pvtv2')
        if family != 'pvtv2':
            backbone.out_type = 'cls_token'
            torch.testing.assert_close(found[CLASS_TOKEN].float(), backbone(x)[-1], rtol=1e-4, atol=1e-5)


def test_pictures_are_drawn_by_seed(data):
    train, val = pictures_of(FeatureSettings(data, (32, 48), 25, 15, seed=1))
    assert (len(train.numbers), len(val.numbers)) == (25, 15)
    assert train[0].images.shape == (25, 3, 32, 48)
    assert all('/train/' in path for path in train.paths)
    assert all('/val/' in path for path in val.paths)
    assert train.numbers == pictures_of(FeatureSettings(data, (32, 48), 25, 15, seed=1))[0].numbers
    assert train.numbers != pictures_of(FeatureSettings(data, (32, 48), 25, 15, seed=2))[0].numbers


def test_rows_and_their_table():
    key = (CLASS_TOKEN, 'k-NN')
    right = {
        'dense': {key: torch.tensor([1, 1, 1, 0] * 25).bool()},
        'half': {key: torch.tensor([1, 0, 1, 0] * 25).bool()},
    }
    dense, half = rows_of(right)
    assert (dense['accuracy'], dense['share']) == (75, 100)
    assert dense['difference'] | {'established': None} == {
        'mean': 0, 'std': 0, 'interval': [0, 0], 'established': None
    }  # fmt: skip
    assert dense['interval'] == pytest.approx([65.7, 82.5], abs=0.05)  # Wilson
    assert (half['accuracy'], half['share']) == (50, pytest.approx(66.67, abs=0.01))
    assert half['difference']['mean'] == -25
    assert half['difference']['interval'] == pytest.approx([-33.6, -16.4], abs=0.05)
    results = {'rows': [dense, half], 'settings': {'size': '98x98', 'num_train': 400}}
    ((title, table),) = tables_of(results)
    assert title == 'k-NN, class token, 98x98, 400 training pictures'
    assert table.texts() == [
        ['dense', '75.0 [65.7, 82.5]', '+0.0 [+0.0, +0.0]', '100.0'],
        ['half', '50.0 [40.4, 59.6]', '**-25.0 [-33.6, -16.4]**', '66.7'],
    ]


def test_the_tool_runs_on_digits(network, data, run, tmp_path):
    texts = [network('dinov2', 'dense'), network('dinov2', 'same'), network('pvtv2', 'pyramid')]
    command = [sys.executable, ROOT / 'tools/benchmark.py', 'features', *texts, '--data', data, '--size', '32']
    command += ['--num-train', '60', '--num-val', '40', '--threads', '1', '--save', 'features.json']
    output = run(list(map(str, command)))
    assert 'linear probe, class token, 32x32, 60 training pictures' in output
    results = json.loads((tmp_path / 'features.json').read_text())
    rows = {(row['network'], row['feature'], row['classifier']): row for row in results['rows']}
    assert len(rows) == 4 + 4 + 2
    for feature in (CLASS_TOKEN, PATCHES):
        for how in ('k-NN', 'linear probe'):
            dense, same = rows['dense', feature, how], rows['same', feature, how]
            assert dense['accuracy'] == same['accuracy'] > 0
            assert same['share'] == 100
            assert same['difference']['mean'] == 0
            assert same['difference']['interval'] == [0, 0]
    assert results['settings'] | {'neighbours': 20, 'seed': 0, 'temperature': 0.07} == results['settings']
    assert [entry['name'] for entry in results['networks']] == ['dense', 'same', 'pyramid']
    assert all(len(entry['sha256']) == 64 for entry in results['networks'])


def test_what_cannot_be_measured_is_refused(network, data, tmp_path):
    settings = FeatureSettings(data, (32, 32), 60, 40)
    one = network('dinov2', 'one')
    with pytest.raises(ValueError, match=r"'two=dinov2-small' must be NAME=ARCH,CHECKPOINT"):
        networks_of([one, 'two=dinov2-small'])
    with pytest.raises(ValueError, match=r"'one' is given several times"):
        networks_of([one, one])
    with pytest.raises(FileNotFoundError, match=r'two: checkpoint .*no\.pth. does not exist'):
        networks_of([f'two={tmp_path}/one.json,{tmp_path}/no.pth'])
    network('dinov3', 'other')
    with pytest.raises(
        ValueError, match=r'does not fit two .*a network with 3 registers \(the model: 2\), rotary positions'
    ):
        benchmark_features([f'two={tmp_path}/one.json,{tmp_path}/other.pth'], settings)
    with pytest.raises(FileNotFoundError, match=r"data folder '.*nowhere' does not exist"):
        pictures_of(FeatureSettings(f'{tmp_path}/nowhere', (32, 32)))
    with pytest.raises(ValueError, match=r'num_val = 100000: .*/val has \d+ pictures; take at most as many'):
        pictures_of(FeatureSettings(data, (32, 32), 60, 100000))
    with pytest.raises(ValueError, match='num_val = 0: must be at least 1'):
        FeatureSettings(data, (32, 32), 60, 0)
    with pytest.raises(ValueError, match='neighbours = 20: must be at most num_train = 10'):
        FeatureSettings(data, (32, 32), 10)
