"""``tools/prune.py``: its goals, its files as inputs, several processes, kills, and mistakes."""

from __future__ import annotations

import json
import random
import runpy
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning import PrunePlan, prunable_dims
from upvit_mm.pruning.baselines import random_scores
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs, count_params
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.score_file import save_scores
from upvit_mm.workflow.ledger import Ledger
from upvit_mm.workflow.prune import PruneJob, prune
from upvit_mm.workflow.prune_goal import goal_and_settings, source_of
from upvit_mm.workflow.prune_settings import PruneSettings

ROOT = Path(__file__).parents[2]
QUICK = dict(method='random', eval_images=0, per_class=1)


def meet(cfg, checkpoint, folder, budget: str, **settings) -> tuple[ArchSpec, ArchSpec]:
    goal, settings = goal_and_settings(cfg, QUICK | {'budget': budget, **settings})
    plan = prune(cfg, checkpoint, goal, folder, settings).plan
    return plan.source_arch, plan.target_arch


@pytest.mark.parametrize('settings', [{'round_to': 2}, {'non_uniform': True}, {'head_policy': 'select', 'round_to': 4}])
def test_budgets(cfg, checkpoint, tmp_path, settings):
    dense, pruned = meet(cfg, checkpoint, tmp_path / 'a', 'macs=60%@128x160', **settings)
    assert 0.594 <= count_macs(pruned, (128, 160), 10) / count_macs(dense, (128, 160), 10) <= 0.6
    dense, pruned = meet(cfg, checkpoint, tmp_path / 'b', 'params=60%', **settings)
    assert 0.594 <= count_params(pruned, 10) / count_params(dense, 10) <= 0.6
    report = json.loads((tmp_path / 'b/report.json').read_text())
    assert report['costs']['pruned']['params'] == count_params(pruned, 10)
    assert 'macs@800x1333' in (tmp_path / 'b/report.md').read_text()
    assert '| macs@128x160 |' in (tmp_path / 'a/report.md').read_text()


def test_widths_and_the_settings_of_a_config(cfg, checkpoint, tmp_path, family):
    cfg.prune = dict(target='deit-small', method='random', per_class=3)
    widths = {'mlp_hidden_dims': 40}
    goal, settings = goal_and_settings(cfg, {'widths': widths, 'per_class': 1, 'eval_images': 0, 'config': 'x'})
    assert settings == PruneSettings(method='random', per_class=1, eval_images=0)
    plan = prune(cfg, checkpoint, goal, tmp_path / 'out', settings).plan
    assert {w for stage in plan.target_arch.mlp_hidden_dims for w in stage} == {40}
    assert plan.target_arch.qk_scales == plan.source_arch.qk_scales
    assert goal_and_settings(cfg, {})[0].name == 'deit-small'
    for given, match in (({'budget': 'macs=1G', 'target': 'deit-tiny'}, '2 goals are given'),):
        with pytest.raises(ValueError, match=match):
            goal_and_settings(cfg, given)
    cfg.prune = dict(methode='kl')
    with pytest.raises(ValueError, match=r'prune = dict\(methode=...\) of the config: unknown'):
        goal_and_settings(cfg, {})
    with pytest.raises(ValueError, match='0 goals are given'):
        goal_and_settings(Config(), {})


def test_scores_and_plans_as_inputs_need_no_images(family, cfg, checkpoint, target, tmp_path, caplog):
    """The data set is not there, and still: another target from scores, the same result from the plan."""
    arch = ArchSpec.from_dict(cfg.arch)
    settings = PruneSettings(method='taylor', compensate=False, **_few())
    first = prune(cfg, checkpoint, goal := _wide(arch), tmp_path / 'first', settings)
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.data_root = '/no/such/folder'
    scores = str(tmp_path / 'first/scores.pt')
    settings = PruneSettings(eval_images=0, compensate=False)
    again = prune(cfg, checkpoint, goal, tmp_path / 'again', settings, scores_file=scores)
    assert all(torch.equal(again.plan.kept[n], first.plan.kept[n]) for n in first.plan.kept)
    assert again.plan.meta['method'] == 'taylor'
    assert again.held_out == {}
    plan = PrunePlan.load(tmp_path / 'first/plan.json')
    prune(cfg, checkpoint, plan, tmp_path / 'carried', settings)
    files = [torch.load(tmp_path / f / 'pruned.pth', weights_only=True)['state_dict'] for f in ('first', 'carried')]
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    assert 'not judged' in (tmp_path / 'carried/report.md').read_text().lower()


def _wide(arch: ArchSpec) -> ArchSpec:
    return arch.with_widths({'mlp_hidden_dims': 64})


def _few() -> dict:
    return dict(per_class=1, eval_images=10)


def test_scores_of_another_checkpoint_or_of_nobody(family, cfg, checkpoint, tmp_path, caplog):
    arch = ArchSpec.from_dict(cfg.arch)
    scores = random_scores(arch, 0)
    save_scores(tmp_path / 'foreign.pt', scores, arch, checkpoint_sha256='0' * 64)
    save_scores(tmp_path / 'nameless.pt', scores, arch, method='exact')
    job = (cfg, checkpoint, _wide(arch), tmp_path / 'out', PruneSettings(eval_images=0))
    with pytest.raises(ValueError, match='belong to another checkpoint'):
        prune(*job, scores_file=str(tmp_path / 'foreign.pt'))
    assert not (tmp_path / 'out').exists()
    with caplog.at_level('WARNING', 'upvit_mm'):
        prune(*job, scores_file=str(tmp_path / 'nameless.pt'))
    assert 'does not say which checkpoint was scored' in caplog.text
    scores['stages.0.embed'][3] = float('nan')
    torch.save({'scores': scores, 'meta': {'version': 1}}, tmp_path / 'nan.pt')
    with pytest.raises(ValueError, match=r"scores of 'stages.0.embed' hold NaN or Inf"):
        prune(*job, scores_file=str(tmp_path / 'nan.pt'))


@pytest.mark.parametrize('family', ['pvtv2'])
def test_unchanged_steps_are_skipped(cfg, checkpoint, target, tmp_path):
    settings = PruneSettings(method='fisher', draws=1, compensate=True, **_few())
    work = tmp_path / 'out'

    def stamps() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in work.iterdir() if p.name != 'steps.json'}

    prune(cfg, checkpoint, target, work, settings)
    before = stamps()
    outcome = prune(cfg, checkpoint, target, work, settings)
    assert stamps() == before
    assert outcome.held_out['compensated']['kl'] > 0
    job = PruneJob(cfg, checkpoint, target, work, settings)
    job.run()
    assert not {'net', 'proxy', 'held_out'} & {*vars(job.subject), *vars(job.images)}  # nothing was built or read
    # another ridge: compensated and judged anew, not scored
    prune(cfg, checkpoint, target, work, PruneSettings(method='fisher', draws=1, compensate=True, ridge=0.1, **_few()))
    changed = {name for name, stamp in stamps().items() if stamp != before[name]}
    assert {'pruned.pth', 'report.json'} <= changed
    assert not {'scores.pt', 'proxy.txt', 'plan.json'} & changed
    # a spoiled file is made again
    (work / 'pruned.pth').write_bytes(b'')
    prune(cfg, checkpoint, target, work, settings)
    assert torch.load(work / 'pruned.pth', weights_only=True)['state_dict']


def test_hybrid_follows_exact_scores_near_the_cut(cfg, checkpoint, target, tmp_path):
    """With a window over everything it keeps what ``kl`` keeps."""
    plans = {}
    goal = _wide(ArchSpec.from_dict(cfg.arch))
    for name, settings in {
        'kl': dict(method='exact'),
        'hybrid': dict(method='hybrid', near_share=1.0),
        'fisher': dict(method='fisher'),
    }.items():
        plans[name] = prune(
            cfg, checkpoint, goal, tmp_path / name, PruneSettings(draws=1, **settings, **_few())
        ).plan.kept
    names = [n for n in plans['kl'] if n.endswith('mlp_hidden')]
    assert all(torch.equal(plans['kl'][n], plans['hybrid'][n]) for n in names)
    assert any(not torch.equal(plans['kl'][n], plans['fisher'][n]) for n in names)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_dry_run_writes_nothing(prune_tool, run, tmp_path):
    output = run(prune_tool('--budget', 'params=50%', '--no-non-uniform', '--work-dir', 'out', '--dry-run'))
    assert 'method fisher: ' in output
    assert 'draws = 4, seed = 0' in output
    assert 'FFN hidden' in output
    assert '50.0 %' in output or '49.' in output
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_result_for_another_goal_is_not_replaced(cfg, checkpoint, target, tmp_path):
    def job(goal) -> PruneJob:
        return PruneJob(cfg, checkpoint, goal, tmp_path, PruneSettings(**QUICK, compensate=False))

    budget = Budget.parse('params=60%')
    job(budget).check_free()  # an empty folder
    job(budget).run()
    job(budget).check_free()
    found = job(PrunePlan.load(tmp_path / 'plan.json'))
    found.check_free()
    for other in (Budget.parse('params=70%'), target):
        with pytest.raises(ValueError, match=r'pruned for another goal \(budget params=60%\); .* or --overwrite'):
            job(other).check_free()
    job(target).run()
    job(target).check_free()
    (tmp_path / 'plan.json').write_text('{')
    job(budget).check_free()  # it is made again


def test_flags_turn_off_what_a_config_sets(monkeypatch):
    cfg = Config(dict(prune=dict(budget='params=50%', compensate=True, tie_qkv=True)))
    parse_args = runpy.run_path(str(ROOT / 'tools/prune.py'))['parse_args']
    for words, expected in (([], True), (['--no-compensate'], False), (['--compensate'], True)):
        monkeypatch.setattr(sys, 'argv', ['prune.py', 'dense.py', 'dense.pth', '--work-dir', 'out', *words])
        settings = goal_and_settings(cfg, vars(parse_args()) | {'device': 'cpu'})[1]
        assert (settings.compensate, settings.tie_qkv, settings.non_uniform) == (expected, True, True)


# ------------------------------------------------------- processes and interruptions


@pytest.mark.parametrize('family', ['pvtv2'])
@pytest.mark.parametrize('non_uniform', [False, True])
def test_only_the_first_process_knows_the_target(cfg, checkpoint, tmp_path, non_uniform):
    goal, settings = goal_and_settings(cfg, QUICK | {'budget': 'params=60%', 'non_uniform': non_uniform})
    first, second = (PruneJob(cfg, checkpoint, goal, tmp_path, settings, crew=Crew(rank, 2)) for rank in (0, 1))
    assert second.target() is None
    assert 0.594 <= count_params(first.target(), 10) / count_params(first.source, 10) <= 0.6


@pytest.mark.parametrize('family', ['pvtv2'])
def test_killed_and_restarted_the_files_are_bit_identical(prune_tool, run, environment, tmp_path):
    words = ['--widths', 'mlp_hidden_dims=64', '--method', 'hybrid', '--per-class', '2', '--batch-size', '2']
    words += ['--eval-images', '10', '--max-rows', '64', '--draws', '1']
    run(prune_tool(*words, '--work-dir', 'calm'))
    chance, kills = random.Random(0), 0
    while kills < 3:
        process = subprocess.Popen(
            prune_tool(*words, '--work-dir', 'stormy'),
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        parts = tmp_path / 'stormy/partial'
        seen = _parts(parts)
        while process.poll() is None and _parts(parts) <= seen:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.wait()
        kills += 1
        assert not (tmp_path / 'stormy/pruned.pth').exists()
    assert 3 <= _parts(parts) < 20  # ten of fisher, ten of kl
    run(prune_tool(*words, '--work-dir', 'stormy'))
    for name in ('scores.pt', 'plan.json', 'arch.json', 'proxy.txt'):
        assert (tmp_path / 'calm' / name).read_bytes() == (tmp_path / 'stormy' / name).read_bytes(), name


def _parts(folder: Path) -> int:
    return len([p for p in folder.rglob('batch_*.pt') if not p.name.startswith('.')])


@pytest.mark.parametrize('family', ['pvtv2'])
def test_windows_of_a_pvtv2_are_refused_before_anything_is_scored(cfg, checkpoint, target, tmp_path):
    with pytest.raises(ValueError, match='window_size = 7: pvtv2 has spatial reduction instead of windows'):
        PruneJob(cfg, checkpoint, target, tmp_path / 'out', PruneSettings(window_size=7))


@pytest.mark.parametrize('family', ['pvtv2'])
def test_missing_data_are_named_before_anything_is_scored(cfg, checkpoint, target, tmp_path):
    cfg.train_dataloader.dataset.data_root = '/no/imagenet'
    job = PruneJob(cfg, checkpoint, target, tmp_path / 'out', PruneSettings(eval_images=0))
    assert job.target() == target  # which needs none
    with pytest.raises(FileNotFoundError, match=r"'/no/imagenet' does not exist: .* are enough: --images FOLDER"):
        job.run()


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_finished_job_does_without_the_data(cfg, checkpoint, target, tmp_path, monkeypatch):
    settings = PruneSettings(method='taylor', per_class=1, eval_images=20)
    first = prune(cfg, checkpoint, target, tmp_path, settings)
    monkeypatch.setattr(
        'upvit_mm.workflow.dense_classifier.check_images', lambda *args: pytest.fail('looked for images')
    )
    assert prune(cfg, checkpoint, target, tmp_path, settings).held_out == first.held_out


@pytest.mark.parametrize('family', ['deit'])
def test_blocks_are_chosen_by_the_head(cfg, checkpoint, tmp_path):
    """By KL, whatever method ranks the channels: so the head must be read as it is scored."""
    goal, settings = goal_and_settings(cfg, QUICK | {'widths': {'depths': [1]}})
    cfg.model.backbone.window_size = 4
    with pytest.raises(ValueError, match='window_size = 4: importance is measured with global attention'):
        PruneJob(cfg, checkpoint, goal, tmp_path, settings)
    cfg.model.backbone.pop('window_size')


@pytest.mark.parametrize('family', ['pvtv2'])
def test_the_config_of_a_detector_is_refused(cfg):
    with pytest.raises(ValueError, match="default_scope = 'mmdet': importance is measured in a classifier"):
        source_of(Config(dict(cfg, default_scope='mmdet')))


@pytest.mark.parametrize('family', ['pvtv2'])
def test_a_plan_of_the_same_network_by_another_name(cfg, checkpoint, target, tmp_path):
    plan = prune(cfg, checkpoint, target, tmp_path / 'first', PruneSettings(**QUICK)).plan
    renamed = replace(plan, source_arch=replace(plan.source_arch, name='other'))
    settings = PruneSettings(**QUICK, compensate=True)
    assert prune(cfg, checkpoint, renamed, tmp_path / 'again', settings).plan.target_arch == target


# ------------------------------------------------------------------------------ ledger


def test_ledger(tmp_path):
    ledger = Ledger(tmp_path)
    assert not ledger.is_current('step', 'a')
    (tmp_path / 'out').write_text('result')
    ledger.record('step', 'a', 'out')
    assert ledger.is_current('step', 'a')
    assert not ledger.is_current('step', 'b')
    assert not ledger.is_current('other', 'a')
    (tmp_path / 'out').write_text('changed')
    assert not ledger.is_current('step', 'a')
    (tmp_path / 'out').unlink()
    assert not ledger.is_current('step', 'a')
    for content in ('', '[]', '{"step": 3}', '{"step": {"inputs": "a"}}'):
        (tmp_path / 'steps.json').write_text(content)
        assert not ledger.is_current('step', 'a')


def test_every_dim_is_drawn(cfg, checkpoint, tmp_path, family):
    """The picture of a network that loses blocks, and of a plan without scores."""
    from upvit_mm.pruning import make_plan
    from upvit_mm.workflow.prune_report import draw_widths

    arch = ArchSpec.from_dict(cfg.arch)
    blocks = [[(j, j) for j in range(depth)] for depth in arch.depths]
    blocks[-1] = [(0, 1)]
    plan = make_plan(arch, {}, blocks)
    scores = random_scores(arch, 0)
    bars = sum(len(container) for axes in draw_widths(plan, scores).axes[:4] for container in axes.containers)
    gone = 3 * (arch.depths[-1] - 1)
    assert bars == 2 * (len(prunable_dims(arch)) - gone)
    assert len(draw_widths(plan, None).axes) == 4
