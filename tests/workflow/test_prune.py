"""The pruning job from checkpoint to files, and those files at work in mmpretrain and mmdet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from upvit_mm.arch import ArchSpec
from upvit_mm.files import sha256_of
from upvit_mm.models.map_strides import check_strides
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.score_file import load_scores
from upvit_mm.workflow.posteriors import build_net
from upvit_mm.workflow.prune import PruneJob, prune
from upvit_mm.workflow.prune_settings import PruneSettings


def test_the_tool_and_what_becomes_of_its_files(family, dense_config, prune_tool, run, target, scope, tmp_path):
    target.save_json(tmp_path / 'target.json')
    words = ['--target', 'target.json', '--work-dir', 'out', '--per-class', '12', '--draws', '1', '--compensate']
    output = run(prune_tool(*words, '--eval-images', '40'))
    assert 'compensated: top-1' in output
    out = tmp_path / 'out'
    assert {p.name for p in out.iterdir()} == {
        *(['blocks.json'] if family == 'pvtv2' else []),  # it loses blocks
        'arch.json',
        'sliced.pth',
        'plan.json',
        'proxy.txt',
        'report.json',
        'report.md',
        'scores.pt',
        'pruned.pth',
        'steps.json',
        'widths.png',
    }
    assert len((out / 'proxy.txt').read_text().splitlines()) == 120
    plan = PrunePlan.load(out / 'plan.json')
    assert plan.target_arch == target == ArchSpec.from_json(out / 'arch.json')
    meta = torch.load(out / 'pruned.pth', weights_only=True)['meta']
    assert meta['tool'] == 'prune'
    assert len(meta['sha256']) == 64
    held_out = json.loads((out / 'report.json').read_text())['held_out']
    assert held_out['dense']['kl'] == pytest.approx(0, abs=1e-9)
    assert 0 < held_out['compensated']['kl'] < held_out['sliced']['kl']

    (tmp_path / 'small.py').write_text(
        f"_base_ = ['{dense_config}']\n"
        f'arch = {ArchSpec.from_json(out / "arch.json").to_dict()}\n'
        "model = dict(backbone=dict(arch=dict(_delete_=True, **arch)), head=dict(in_channels=arch['embed_dims'][-1]))\n"
    )
    from mmpretrain.registry import MODELS

    scope('mmpretrain')
    model = MODELS.build(Config.fromfile(tmp_path / 'small.py').model)
    load_checkpoint(model, str(out / 'pruned.pth'), strict=True)
    with torch.no_grad():
        assert torch.isfinite(model.eval()(torch.randn(1, 3, 64, 64), mode='tensor')).all()


def test_the_pruned_backbone_goes_into_a_detector(cfg, checkpoint, target, scope, tmp_path, family):
    prune(cfg, checkpoint, target, tmp_path, PruneSettings(method='magnitude', per_class=1, eval_images=10))
    neck = dict(type='FPN', in_channels=list(target.embed_dims), out_channels=16, num_outs=4)
    if family == 'deit':
        neck = dict(type='upvit_mm.SimpleFeaturePyramid', in_channels=target.embed_dims[0], out_channels=16)
    (tmp_path / 'detector.py').write_text(
        "_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', './arch.json']\n"
        f"model = dict(backbone=dict(_delete_=True, type='upvit_mm.{'UPDeiT' if family == 'deit' else 'UPPVTv2'}',\n"
        f"    arch=_base_.arch, init_cfg=dict(type='Pretrained', checkpoint='{tmp_path}/pruned.pth')),\n"
        f'    neck=dict(_delete_=True, **{neck}), bbox_head=dict(in_channels=16))\n'
    )
    from mmdet.registry import MODELS

    scope('mmdet')
    model = MODELS.build(Config.fromfile(tmp_path / 'detector.py').model)
    model.init_weights()
    state = torch.load(tmp_path / 'pruned.pth', weights_only=True)['state_dict']
    assert all(torch.equal(v, state[f'backbone.{k}']) for k, v in model.backbone.state_dict().items())


def test_scores_are_used_again_only_for_the_same_inputs(cfg, checkpoint, target, tmp_path):
    settings = dict(method='fisher', draws=1, per_class=1, eval_images=10)
    plans = [prune(cfg, checkpoint, target, tmp_path, PruneSettings(**settings)).plan]
    stamp = (tmp_path / 'scores.pt').stat().st_mtime_ns
    plans.append(prune(cfg, checkpoint, target, tmp_path, PruneSettings(**settings)).plan)
    assert (tmp_path / 'scores.pt').stat().st_mtime_ns == stamp
    assert all(torch.equal(plans[0].kept[n], plans[1].kept[n]) for n in plans[0].kept)
    prune(cfg, checkpoint, target, tmp_path, PruneSettings(**settings | {'draws': 2}))
    assert (tmp_path / 'scores.pt').stat().st_mtime_ns != stamp


@pytest.mark.parametrize('family', ['pvtv2'])
def test_kl_and_fisher_rank_alike(cfg, checkpoint, target, tmp_path):
    """The estimate follows the definition, over all channels of the widest dims."""
    for method in ('exact', 'fisher'):
        settings = PruneSettings(method=method, draws=16, per_class=1, eval_images=10)
        prune(cfg, checkpoint, target, tmp_path / method, settings)
    exact, estimate = (
        load_scores(tmp_path / m / 'scores.pt', ArchSpec.from_dict(cfg.arch))[0] for m in ('exact', 'fisher')
    )
    ranks = [
        torch.corrcoef(torch.stack([exact[n].argsort().argsort(), estimate[n].argsort().argsort()]).double())[0, 1]
        for n in exact
    ]
    assert torch.stack(ranks).median() > 0.8


@pytest.mark.parametrize('family', ['deit'])
def test_a_compensation_that_makes_it_worse_is_said(cfg, checkpoint, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        'upvit_mm.workflow.repairing.compensate', lambda dense, net, *args: net.head.weight.data.mul_(-5)
    )
    goal = ArchSpec.from_dict(cfg.arch).with_widths({'mlp_hidden_dims': 64})
    settings = PruneSettings(method='magnitude', per_class=1, eval_images=10, compensate=True)
    with caplog.at_level('WARNING', 'upvit_mm'):
        prune(cfg, checkpoint, goal, tmp_path, settings)
    assert 'compensation made the network worse' in caplog.text


def test_a_backbone_without_a_head(cfg, checkpoint, tmp_path):
    """Sliced and compensated by its stream alone; the dense features are followed more closely than by slicing."""
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    torch.save({k: v for k, v in state.items() if not k.startswith('head')}, tmp_path / 'headless.pth')
    goal = ArchSpec.from_dict(cfg.arch).with_widths({'mlp_hidden_dims': 64})
    settings = PruneSettings(method='magnitude', eval_images=0, per_class=4, compensate=True)
    job = PruneJob(cfg, str(tmp_path / 'headless.pth'), goal, tmp_path, settings)
    job.run()
    lacks = []
    for name in ('sliced', 'pruned'):
        pruned = torch.load(tmp_path / f'{name}.pth', weights_only=True)['state_dict']
        assert not any(key.startswith('head') for key in pruned)
        with torch.no_grad():
            net = build_net(goal, pruned)
            pairs = [(net(b.images)[-1][0], job.dense(b.images)[-1][0]) for b in job.proxy]  # the last map's tokens
            lacks.append(sum((ours - theirs).square().sum() for ours, theirs in pairs))
    assert lacks[1] < 0.5 * lacks[0]


def test_bad_input(cfg, checkpoint, target, tmp_path):
    with pytest.raises(ValueError, match="method = 'guess'"):
        PruneSettings(method='guess')
    quick = dict(method='random', eval_images=10)
    with pytest.raises(ValueError, match='class 0 has 400 training images: 401 of every class'):
        prune(cfg, checkpoint, target, tmp_path, PruneSettings(per_class=401, method='taylor', eval_images=10))
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'no.pth' does not exist"):
        prune(cfg, 'no.pth', target, tmp_path, PruneSettings(**quick))
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    headless = {k: v for k, v in state.items() if not k.startswith('head')}
    torch.save(headless, tmp_path / 'headless.pth')
    for settings in (quick, dict(method='taylor', eval_images=0)):
        with pytest.raises(ValueError, match='has no linear head'):
            prune(cfg, str(tmp_path / 'headless.pth'), target, tmp_path, PruneSettings(**settings))
    wider = ArchSpec.from_dict({**target.to_dict(), 'mlp_hidden_dims': 4096})
    with pytest.raises(ValueError, match=r'mlp_hidden: the target keeps 4096 of'):
        prune(cfg, checkpoint, wider, tmp_path, PruneSettings(**quick))


@pytest.mark.parametrize('family', ['pvtv2'])
def test_files_carry_the_settings_that_made_them(cfg, checkpoint, target, tmp_path):
    """Also where the plan was made before, under others."""
    settings = dict(method='magnitude', per_class=2, eval_images=10)
    prune(cfg, checkpoint, target, tmp_path, PruneSettings(**settings))
    prune(cfg, checkpoint, target, tmp_path, PruneSettings(**settings, compensate=True, ridge=0.5))
    report = json.loads((tmp_path / 'report.json').read_text())
    for meta in (report, torch.load(tmp_path / 'pruned.pth', weights_only=True)['meta']):
        assert (meta['settings']['compensate'], meta['settings']['ridge']) == (True, 0.5)


@pytest.mark.parametrize('family', ['deit'])
def test_a_network_that_is_not_the_scored_one_is_refused(cfg, checkpoint, target, tmp_path):
    def refuses(match: str, **settings) -> None:
        with pytest.raises(ValueError, match=match):
            PruneJob(cfg, checkpoint, target, tmp_path, PruneSettings(per_class=1, **settings))

    cfg.model.backbone.window_size = 4
    refuses(r'model.backbone.window_size = 4: importance is measured with global attention')
    cfg.model.backbone.update(window_size=0, out_type='featmap')
    cfg.model.neck = dict(type='GlobalAveragePooling')
    refuses(r"out_type = 'featmap', model.neck = 'GlobalAveragePooling': the head of a DeiT must read the class token")
    runs_nothing = PruneSettings(method='magnitude', eval_images=0, compensate=False)
    PruneJob(cfg, checkpoint, target, tmp_path, runs_nothing)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_pvtv2_is_pooled(cfg, checkpoint, target, tmp_path):
    from mmpretrain.models.necks import GlobalAveragePooling

    cfg.model.pop('neck')
    with pytest.raises(ValueError, match=r'model.neck = None: the head of a PVTv2 must read the mean over tokens'):
        PruneJob(cfg, checkpoint, target, tmp_path, PruneSettings())
    cfg.model.neck = dict(type=GlobalAveragePooling)  # the class, as in configs that are pure Python
    PruneJob(cfg, checkpoint, target, tmp_path, PruneSettings())


@pytest.mark.parametrize('family', ['deit'])
def test_a_target_of_another_image_size_takes_that_of_the_source(cfg, checkpoint, target, tmp_path):
    """A stock architecture is one of 224 px."""
    goal = replace(target, img_size=2 * target.img_size)
    job = PruneJob(cfg, checkpoint, goal, tmp_path, PruneSettings(method='random', eval_images=0))
    assert job.target() == target
    assert job.run().plan.target_arch == target


@pytest.mark.parametrize('family', ['deit'])
def test_the_report_gives_the_detector_that_was_counted(cfg, checkpoint, tmp_path):
    """With its windows, and with widths as numbers: it may inherit a config that has an arch of its own."""
    budget = Budget.parse('macs=50%@256x256')
    settings = PruneSettings(method='random', eval_images=0, window_size=4, round_to=1)
    plan = prune(cfg, checkpoint, budget, tmp_path / 'out', settings).plan
    text = (tmp_path / 'out/report.md').read_text()
    assert f'save them as `{tmp_path}/out/detector.py`' in text
    assert 'in windows of 4x4 tokens but for four blocks' in text
    (tmp_path / 'out/detector.py').write_text(text.split('```python\n')[1].split('```')[0])
    detector = Config.fromfile(tmp_path / 'out/detector.py')
    check_strides(detector)
    model = detector.model
    assert model.bbox_head.anchor_generator.strides == [4, 8, 16, 32, 64]  # of patches of 8 px
    assert (ArchSpec.from_json(model.backbone.arch), model.backbone.window_size) == (plan.target_arch, 4)
    assert model.neck.in_channels == list(plan.target_arch.embed_dims)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_checkpoint_may_be_an_address(cfg, checkpoint, target, tmp_path, monkeypatch):
    monkeypatch.setattr('upvit_mm.checkpoints.io._download', lambda url: Path(checkpoint))
    settings = PruneSettings(method='magnitude', eval_images=0)
    meta = prune(cfg, 'https://example.org/dense.pth', target, tmp_path / 'out', settings).plan.meta
    assert (meta['checkpoint'], meta['sha256']) == ('https://example.org/dense.pth', sha256_of(checkpoint))
