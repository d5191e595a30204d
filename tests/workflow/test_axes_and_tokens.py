"""Pruning jobs that look at tokens, and that put the network into other axes first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import load_classifier
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.score_file import load_scores
from upvit_mm.workflow import prune as prune_module
from upvit_mm.workflow.posteriors import build_net
from upvit_mm.workflow.prune import PruneJob, prune
from upvit_mm.workflow.prune_settings import PruneSettings

VITS = ['deit', 'dinov2', 'dinov3']
SMALL = dict(per_class=2, eval_images=20, batch_size=10, draws=1)


def narrower(cfg, **widths) -> ArchSpec:
    return ArchSpec.from_dict(cfg.arch).with_widths(widths)


def network(cfg, path: Path, arch: ArchSpec | None = None):
    arch = arch or ArchSpec.from_dict(cfg.arch)
    return build_net(arch, load_classifier(str(path), arch=arch))


@pytest.fixture
def headless(checkpoint, tmp_path) -> str:
    """The checkpoint without its head."""
    state = {k: v for k, v in torch.load(checkpoint)['state_dict'].items() if not k.startswith('head.')}
    torch.save(state, tmp_path / 'headless.pth')
    return str(tmp_path / 'headless.pth')


@pytest.mark.parametrize('family', [*VITS, 'pvtv2'])
def test_a_network_without_a_head_is_scored_by_its_tokens(cfg, headless, tmp_path):
    source = ArchSpec.from_dict(cfg.arch)
    depths = [max(1, depth - 1) for depth in source.depths]
    goal = source.with_widths({'depths': depths})
    settings = PruneSettings(**SMALL | {'eval_images': 0}, compensate=True)
    plan = prune(cfg, headless, goal, tmp_path, settings).plan
    assert list(plan.target_arch.depths) == depths
    scores, _ = load_scores(tmp_path / 'scores.pt', source)
    assert all(values.max() > 0 for values in scores.values())
    with pytest.raises(ValueError, match='has no linear head, and class posteriors are needed'):
        PruneJob(cfg, headless, goal, tmp_path, PruneSettings(**SMALL))
    with pytest.raises(ValueError, match='has no linear head, and class posteriors are needed'):
        PruneJob(cfg, headless, goal, tmp_path, PruneSettings(**SMALL | {'eval_images': 0}, method='taylor'))


@pytest.mark.parametrize('family', ['dinov3', 'pvtv2'])
def test_heads_without_a_word(cfg, headless, checkpoint, tmp_path):
    """Directions of a network without a head, which detectors will read; channels of a classifier; a plan as it was."""
    goal, settings = ArchSpec.from_dict(cfg.arch), PruneSettings(**SMALL | {'eval_images': 0})
    found = {path: PruneJob(cfg, path, goal, tmp_path, settings).settings.attention for path in (headless, checkpoint)}
    assert found == {headless: 'lowrank', checkpoint: 'channels'}
    silent = PruneSettings(**SMALL | {'eval_images': 0}, method='magnitude')
    assert PruneJob(cfg, headless, goal, tmp_path, silent).settings.attention == 'channels'
    plan = prune(cfg, headless, goal, tmp_path / 'first', settings).plan
    assert plan.meta['settings']['attention'] == 'lowrank'
    job = PruneJob(cfg, str(tmp_path / 'first/turned.pth'), plan, tmp_path / 'again', settings)
    assert job.settings.attention == 'channels'  # it is turned
    channels = prune(cfg, headless, goal, tmp_path / 'cut', replace(settings, attention='channels')).plan
    job = PruneJob(cfg, headless, channels, tmp_path / 'third', settings)
    assert job.settings.attention == 'channels'


def test_the_criterion_decides_the_scores(cfg, checkpoint, tmp_path):
    goal, found = ArchSpec.from_dict(cfg.arch), {}
    for criterion in ('posterior', 'tokens', None):
        settings = PruneSettings(**SMALL | {'eval_images': 0}, criterion=criterion)
        found[criterion] = PruneJob(cfg, checkpoint, goal, tmp_path, settings).scores()
    assert all(torch.equal(found['posterior'][name], found[None][name]) for name in found[None])
    assert not any(torch.equal(found['posterior'][name], found['tokens'][name]) for name in found[None])


@pytest.mark.parametrize('family', [*VITS, 'pvtv2'])
def test_low_rank_heads(cfg, checkpoint, tmp_path, monkeypatch):
    """``turned.pth`` is the same network, cuts less when channels go, and is not made twice."""
    source = ArchSpec.from_dict(cfg.arch)
    half = {name: [[width // 2 for width in row] for row in getattr(source, name)] for name in ('qk_dims', 'v_dims')}
    goal, results = narrower(cfg, **half), {}
    for attention in ('channels', 'lowrank'):
        settings = PruneSettings(**SMALL, attention=attention)
        results[attention] = prune(cfg, checkpoint, goal, tmp_path / attention, settings).held_out
    assert results['lowrank']['sliced']['kl'] < results['channels']['sliced']['kl']
    images = torch.randn(2, 3, source.img_size, source.img_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense, turned = (network(cfg, path)(images) for path in (checkpoint, tmp_path / 'lowrank/turned.pth'))
    assert torch.allclose(dense, turned, atol=1e-4)
    monkeypatch.setattr(prune_module.DenseClassifier, 'turn', lambda *args: pytest.fail('turned again'))
    settings = PruneSettings(**SMALL, attention='lowrank')
    assert prune(cfg, checkpoint, goal, tmp_path / 'lowrank', settings).held_out == results['lowrank']
    monkeypatch.setattr(prune_module, 'AXES', 'another way')  # of another version of this package
    with pytest.raises(pytest.fail.Exception, match='turned again'):
        prune(cfg, checkpoint, goal, tmp_path / 'lowrank', settings)


@pytest.mark.parametrize('family', VITS)
def test_a_rotated_embedding(cfg, checkpoint, tmp_path):
    source, results = ArchSpec.from_dict(cfg.arch), {}
    goal = narrower(cfg, embed_dims=[source.embed_dims[0] * 2 // 3])
    for embed in ('channels', 'rotate'):
        settings = PruneSettings(**SMALL, embed=embed, compensate=True)
        results[embed] = prune(cfg, checkpoint, goal, tmp_path / embed, settings).held_out
    assert results['rotate']['sliced']['kl'] < results['channels']['sliced']['kl']
    plan = PrunePlan.load(tmp_path / 'rotate/plan.json')
    assert plan.turned == ('stages.0.embed',)
    assert plan.kept['stages.0.embed'][0] == 0
    assert plan.target_arch.embed_dims == goal.embed_dims
    with pytest.raises(ValueError, match=r'the plan keeps directions of a turned network .*: give the turned.pth'):
        prune(cfg, checkpoint, plan, tmp_path / 'given', PruneSettings(**SMALL))
    given = prune(cfg, str(tmp_path / 'rotate/turned.pth'), plan, tmp_path / 'given', PruneSettings(**SMALL)).held_out
    assert given['sliced']['kl'] == pytest.approx(results['rotate']['sliced']['kl'], rel=1e-3)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_what_cannot_be_rotated(cfg, checkpoint, tmp_path):
    goal = ArchSpec.from_dict(cfg.arch)
    with pytest.raises(ValueError, match='a stage of a PVTv2 starts with a LayerNorm whose gains write to'):
        PruneJob(cfg, checkpoint, goal, tmp_path, PruneSettings(**SMALL, embed='rotate'))
    with pytest.raises(ValueError, match="embed = 'rotate', method = 'magnitude': it does not score directions"):
        PruneSettings(embed='rotate', method='magnitude')
    with pytest.raises(ValueError, match="attention = 'low': must be one of channels, lowrank"):
        PruneSettings(attention='low')
    with pytest.raises(ValueError, match="criterion = 'boxes': must be one of posterior, tokens"):
        PruneSettings(criterion='boxes')
