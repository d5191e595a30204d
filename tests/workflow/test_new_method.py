"""A new scoring method is one function and one entry: the job, its record and the command line know it.

A second look near the cut is a part of any method, as `hybrid` has it.
"""

from __future__ import annotations

import pytest
import torch

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.methods import EXACT, METHODS, Method
from upvit_mm.pruning.score_file import load_scores
from upvit_mm.workflow.prune import PruneJob, prune
from upvit_mm.workflow.prune_goal import goal_and_settings
from upvit_mm.workflow.prune_settings import PruneSettings


def toy_sums(net, batch, channels, seed, report=None):
    """Channel c of every image is worth c + seed."""
    for name, indices in channels.items():
        yield name, len(batch.images) * (indices.double() + seed)


def toy_weights(arch, state, draws):
    return {name: draws * scores for name, scores in METHODS['magnitude'].of_weights(arch, state).items()}


@pytest.fixture
def cfg(cfg, shrink):
    return shrink(cfg)


@pytest.fixture
def goal(cfg) -> ArchSpec:
    return ArchSpec.from_dict(cfg.arch).with_widths({'mlp_hidden_dims': 12})


@pytest.fixture
def add(monkeypatch):
    """``add(method)``: to the table, until the test ends."""
    return lambda method: monkeypatch.setitem(METHODS, method.name, method)


def scored_by(cfg, checkpoint, goal, folder, **settings) -> dict:
    prune(cfg, checkpoint, goal, folder, PruneSettings(per_class=1, eval_images=0, batch_size=4, **settings))
    return load_scores(folder / 'scores.pt', ArchSpec.from_dict(cfg.arch))[0]


@pytest.mark.parametrize('family', ['pvtv2'])
def test_of_a_batch(add, cfg, checkpoint, goal, tmp_path):
    add(Method('toy', 'the number of the channel', ('images',), ('seed',), of_batch=toy_sums))
    scores = scored_by(cfg, checkpoint, goal, tmp_path, method='toy', seed=3)
    assert all(torch.equal(values, torch.arange(len(values)) + 3.0) for values in scores.values())
    plan = prune(cfg, checkpoint, goal, tmp_path, PruneSettings(method='toy', seed=3, per_class=1, eval_images=0)).plan
    assert plan.meta['method'] == 'toy'
    size = ArchSpec.from_dict(cfg.arch).mlp_hidden_dims[0][0]
    assert plan.kept['stages.0.blocks.0.mlp_hidden'].tolist() == list(range(size - 12, size))
    assert goal_and_settings(cfg, {'budget': 'params=50%', 'method': 'toy'})[1].method == 'toy'


@pytest.mark.parametrize('family', ['pvtv2'])
def test_of_weights_needs_no_images(add, cfg, checkpoint, goal, tmp_path):
    add(Method('toy', 'a norm, many times', ('weights',), ('draws',), of_weights=toy_weights))
    plain = scored_by(cfg, checkpoint, goal, tmp_path / 'plain', method='magnitude')
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.data_root = '/no/such/folder'
    job = PruneJob(
        cfg, checkpoint, goal, tmp_path, PruneSettings(method='toy', draws=5, eval_images=0, compensate=False)
    )
    assert job.scoring.text() == 'method toy: a norm, many times; needs weights; draws = 5'
    scores = job.scores()
    assert all(torch.equal(scores[name], 5 * plain[name]) for name in plain)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_with_a_second_look_near_the_cut(add, cfg, checkpoint, goal, tmp_path):
    """Over all channels of a dim that shrinks, they come in the order of ``exact``; the others keep their estimates."""
    add(Method('toy', 'numbers, then exact', ('images',), ('seed',), of_batch=toy_sums, near_cut=EXACT))
    exact = scored_by(cfg, checkpoint, goal, tmp_path / 'kl', method='exact')
    scores = scored_by(cfg, checkpoint, goal, tmp_path / 'toy', method='toy', near_share=1.0)
    for name, values in scores.items():
        ranked = exact[name] if name.endswith('mlp_hidden') else torch.arange(len(values))
        assert torch.equal(values.argsort(stable=True), ranked.argsort(stable=True))


def test_hybrid_follows_exact_scores_near_the_cut(cfg, checkpoint, goal, tmp_path):
    """With a window over everything it keeps what ``exact`` keeps."""
    kept = {}
    for method, near in (('exact', {}), ('hybrid', {'near_share': 1.0}), ('fisher', {})):
        settings = PruneSettings(method=method, draws=1, per_class=1, eval_images=10, **near)
        kept[method] = prune(cfg, checkpoint, goal, tmp_path / method, settings).plan.kept
    names = [name for name in kept['exact'] if name.endswith('mlp_hidden')]
    assert all(torch.equal(kept['exact'][name], kept['hybrid'][name]) for name in names)
    assert any(not torch.equal(kept['exact'][name], kept['fisher'][name]) for name in names)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_only_the_settings_that_it_reads_decide_whether_scores_are_reused(add, cfg, checkpoint, goal, tmp_path):
    calls = []

    def counted(*args, **settings):
        calls.append(1)
        return toy_weights(*args, **settings)

    add(Method('toy', 'a norm, many times', ('weights',), ('draws',), of_weights=counted))
    for changes in ({}, {'max_rows': 7}, {'near_share': 0.5}, {'draws': 9}, {'draws': 9, 'ridge': 0.5}):
        scored_by(cfg, checkpoint, goal, tmp_path, method='toy', **changes)
    assert len(calls) == 2
