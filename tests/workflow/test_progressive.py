"""The progressive schedule: stages that follow each other, finished ones reused, and what comes out at the end."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop, load_checkpoint

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.pruning import PrunePlan, plan_for_target
from upvit_mm.pruning.baselines import random_scores
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs
from upvit_mm.pruning.spending import target_for_budget
from upvit_mm.workflow import progressive
from upvit_mm.workflow.lesson import Lesson
from upvit_mm.workflow.progressive import Progressive, Schedule, stage_budgets
from upvit_mm.workflow.prune_settings import PruneSettings

TOOL = Path(__file__).parents[2] / 'tools/prune_progressive.py'
SETTINGS = PruneSettings(method='magnitude', per_class=2, non_uniform=False, eval_images=20, round_to=1)
GOAL = Budget.parse('macs=36%@64x64')


@pytest.fixture
def cfg(cfg, shrink):
    return shrink(cfg)


@pytest.fixture
def run(cfg, checkpoint, tmp_path):
    """``run(schedule)``: what two stages of an epoch give, and what they said."""

    def go(**changes):
        said = []
        schedule = Schedule(**dict(stages=2, epochs=2, train_images=40, lesson=Lesson(feature=1.0)) | changes)
        job = Progressive(cfg, checkpoint, GOAL, SETTINGS, schedule, tmp_path / 'out', said.append)
        return job.run(command='the command'), said

    return go


def test_stages_and_what_comes_out(run, cfg, checkpoint, tmp_path, scope):
    content, said = run()
    out = tmp_path / 'out'
    assert content == json.loads((out / 'progressive.json').read_text())
    dense, first, second = content['stages']
    assert first['macs'] / dense['macs'] == pytest.approx(0.6, abs=0.03)
    assert 0.99 * 0.36 <= second['macs'] / dense['macs'] <= 0.36
    assert all(0 <= row[name] <= 100 for row in (first, second) for name in ('sliced', 'compensated', 'top1'))
    assert said[0].startswith('stage 1/2: macs=')

    plans = [PrunePlan.load(out / f'stage{k}/pruning/plan.json') for k in (1, 2)]
    assert replace(plans[1].source_arch, name='') == replace(plans[0].target_arch, name='')
    arch = ArchSpec.from_json(out / 'arch.json')
    assert arch == replace(plans[1].target_arch, name=arch.name)
    assert arch.name == f'{arch.family}@macs=36%@64x64'
    assert count_macs(arch, (64, 64), 10) == second['macs']
    training = Config.fromfile(out / 'stage2/training/config.py').model
    assert training.teacher.checkpoint == checkpoint
    assert training.teacher.backbone.arch == cfg.arch
    assert training.distill.feature.plan == [str(out / f'stage{k}/pruning/plan.json') for k in (1, 2)]
    assert training.init_cfg.checkpoint == str(out / 'stage2/pruning/pruned.pth')

    from mmpretrain.registry import MODELS

    scope('mmpretrain')
    cfg.model.backbone.arch, cfg.model.head.in_channels = arch.to_dict(), arch.embed_dims[-1]
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(out / 'finetuned.pth'), strict=True)
    file = torch.load(out / 'finetuned.pth', weights_only=True)
    trained = torch.load(out / 'stage2/training/epoch_1.pth', weights_only=False)['state_dict']
    assert {k.split('.')[0] for k in file['state_dict']} == {'backbone', 'head'}
    assert all(torch.equal(value, trained[key]) for key, value in file['state_dict'].items())
    assert file['meta']['tool'] == 'prune_progressive'
    assert file['meta']['sha256'] == PrunePlan.load(out / 'stage1/pruning/plan.json').meta['sha256']

    table = [line.split('|')[1:-1] for line in (out / 'progressive.md').read_text().splitlines() if '| ' in line]
    assert [cells[0].strip() for cells in table] == ['stage', 'dense', '1', '2']
    assert [cells[-1].strip() for cells in table[1:]] == [f'{row["top1"]:.2f}' for row in content['stages']]


@pytest.mark.parametrize('policy', ['within', 'select'])
def test_the_documented_command_can_be_carried_out(policy):
    """Of docs/finetune.md, with scores at random: the third stage prunes what has q/k and v of different widths."""
    arch, settings, sources = get_arch('pvtv2-b2'), PruneSettings(head_policy=policy), []
    for budget in stage_budgets(arch, Budget.parse('macs=25%'), 3, settings, 1000):
        target = target_for_budget(arch, budget, settings.grain, 1000)
        assert plan_for_target(arch, target, random_scores(arch, 0), policy).target_arch == target
        sources.append(arch)
        arch = target
    assert [source.qk_dims == source.v_dims for source in sources] == [True, True, policy == 'select']


@pytest.mark.parametrize('policy', ['within', 'select'])
@pytest.mark.parametrize('family', ['pvtv2'])
def test_three_stages(cfg, checkpoint, tmp_path, policy):
    settings = replace(SETTINGS, method='random', compensate=False, eval_images=0, head_policy=policy)
    schedule = Schedule(stages=3, epochs=3, train_images=20, lesson=Lesson(soft=0.0, feature=1.0))
    goal = Budget.parse('macs=30%@64x64')
    content = Progressive(cfg, checkpoint, goal, settings, schedule, tmp_path / 'out', lambda text: None).run()
    dense, *_, last = content['stages']
    assert 0.297 <= last['macs'] / dense['macs'] <= 0.3
    sources = [PrunePlan.load(tmp_path / f'out/stage{k}/pruning/plan.json').source_arch for k in (1, 2, 3)]
    equal = policy == 'select'
    assert [source.qk_dims == source.v_dims for source in sources] == [True, equal, equal]


@pytest.mark.parametrize('family', ['pvtv2'])
def test_finished_stages_are_reused_and_a_cut_one_goes_on(run, monkeypatch, tmp_path):
    whole, epochs = EpochBasedTrainLoop.run_epoch, []

    def stop(self):
        if len(epochs) == 2:
            raise KeyboardInterrupt
        epochs.append(self.epoch)
        whole(self)

    monkeypatch.setattr(EpochBasedTrainLoop, 'run_epoch', stop)
    with pytest.raises(KeyboardInterrupt):  # in the second epoch of the second stage
        run(epochs=3)
    assert not (tmp_path / 'out/finetuned.pth').exists()
    monkeypatch.setattr(EpochBasedTrainLoop, 'run_epoch', lambda self: (epochs.append(self.epoch), whole(self)))
    content, _ = run(epochs=3)
    assert epochs == [0, 0, 1]
    assert [row.get('epochs') for row in content['stages']] == [None, 1, 2]
    again, said = run(epochs=3)
    assert again == content
    assert epochs == [0, 0, 1]
    assert said.count('1 trainings, 1 of them finished before with the same inputs') == 2


@pytest.mark.parametrize('family', ['pvtv2'])
def test_the_tool(cfg, checkpoint, monkeypatch, tmp_path, capsys):
    cfg.dump(tmp_path / 'dense.py')
    words = ['dense.py', checkpoint, '--budget', 'params=60%', '--stages', '1', '--epochs', '1', '--work-dir', 'out']
    words += ['--train-images', '20', '--lr', '0.001', '--soft-weight', '0', '--token-weight', '3']
    words += ['--prune-options', 'method=random', 'eval_images=0', 'round_to=1', 'per_class=1', 'compensate=False']
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['prune_progressive.py', *words])
    runpy.run_path(str(TOOL), run_name='__main__')
    content = json.loads((tmp_path / 'out/progressive.json').read_text())
    assert 'tools/prune_progressive.py dense.py' in content['command']
    assert content['schedule']['lesson'] == {'soft': 0.0, 'feature': 0.0, 'token': 3.0, 'temperature': 1.0}
    assert content['schedule']['lr'] == 0.001
    assert content['settings']['compensate'] is False
    assert [row.get('sliced') for row in content['stages']] == [None, None]
    assert '# budget params=60%, in stages' in capsys.readouterr().out
    assert '| dense |  |' in (tmp_path / 'out/progressive.md').read_text()


def test_budgets_fall_by_equal_shares(cfg):
    source, goal = ArchSpec.from_dict(cfg.arch), Budget.parse('params=40%')
    budgets = stage_budgets(source, goal, 3, replace(SETTINGS, non_uniform=True), 10)
    shares = [b.amount / a.amount for a, b in pairwise(budgets)]
    assert shares == pytest.approx([0.4 ** (1 / 3)] * 2)
    assert not any(budget.relative for budget in budgets)
    absolute = replace(goal, amount=budgets[-1].amount, relative=False)
    assert [b.amount for b in stage_budgets(source, absolute, 3, replace(SETTINGS, non_uniform=True), 10)] == (
        pytest.approx([b.amount for b in budgets])
    )


@pytest.mark.parametrize('family', ['pvtv2'])
def test_budgets_between_that_no_widths_meet_are_lowered(cfg, monkeypatch):
    asked = []

    def meet(arch, budget, *args, **layout):
        asked.append(budget.amount)
        if len(asked) in (1, 2):
            raise ValueError('not met')
        return arch

    monkeypatch.setattr(progressive, 'target_for_budget', meet)
    source = ArchSpec.from_dict(cfg.arch)
    first, last = stage_budgets(source, GOAL, 2, SETTINGS, 10)
    assert asked == pytest.approx([asked[0], asked[0] * 0.99, asked[0] * 0.99**2, last.amount])
    assert first.amount == asked[2]


@pytest.mark.parametrize('family', ['pvtv2'])
def test_mistakes(cfg, checkpoint, tmp_path):
    def build(goal=GOAL, settings=SETTINGS, **schedule):
        schedule = Schedule(**dict(stages=2, epochs=2) | schedule)
        return Progressive(cfg, checkpoint, goal, settings, schedule, tmp_path / 'out')

    for schedule, match in (
        (dict(stages=0), 'stages = 0: must be above 0'),
        (dict(epochs=1), 'epochs = 1: 2 stages need at least one each'),
        (dict(train_images=45), 'train_images = 45: must be a multiple'),
    ):
        with pytest.raises(ValueError, match=match):
            build(**schedule)
    with pytest.raises(ValueError, match='needs a budget as its goal'):
        build(goal=ArchSpec.from_dict(cfg.arch))
    with pytest.raises(ValueError, match='out of reach: the narrowest network costs'):
        build(goal=Budget.parse('macs=1%@64x64'))
    by_score = replace(SETTINGS, non_uniform=True, min_share=0.8)
    build(goal=Budget.parse('params=50%'), settings=by_score)  # 0.66 of all parameters is the least of one stage
    with pytest.raises(ValueError, match=r'params=40% in 2 stages: stage 1 of them would have .*, its narrowest'):
        build(goal=Budget.parse('params=40%'), settings=by_score)
    cfg.pop('train_cfg')
    with pytest.raises(ValueError, match='train_cfg: must be there and count epochs'):
        build()
    assert not (tmp_path / 'out').exists()
