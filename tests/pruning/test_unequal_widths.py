"""Sources whose q/k and v differ in width, from block to block too: plans, budgets, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from upvit_mm.arch import ArchSpec
from upvit_mm.choices import HEAD_POLICIES
from upvit_mm.pruning import plan_for_target, prunable_dims, slice_state
from upvit_mm.pruning.baselines import random_scores
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_params, total, widths_of
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.hybrid import near_cut, rerank, tied
from upvit_mm.pruning.knobs import Grain
from upvit_mm.pruning.spending import check_budget, narrowest, target_for_budget

TARGETS = {  # of the tiny architectures, by family and policy
    ('deit', 'within'): dict(qk_dims=[[12, 4, 5, 8, 15]], v_dims=[[9, 16, 17, 4, 3]]),
    ('deit', 'select'): dict(num_heads=[[2, 1, 1, 3, 3]], qk_dims=[[16, 5, 7, 12, 30]], v_dims=[[8, 15, 17, 24, 9]]),
    ('deit', 'regroup'): dict(num_heads=[[2, 1, 1, 2, 1]], qk_dims=[[14, 9, 7, 4, 8]], v_dims=[[6, 8, 5, 12, 9]]),
    ('pvtv2', 'within'): dict(qk_dims=[[3], [6, 9], [8, 9], [5]], v_dims=[[12], [4, 9], [10, 7], [10]]),
    ('pvtv2', 'select'): dict(
        num_heads=[[1], [1, 2], [1, 1], [4]],
        qk_dims=[[7], [5, 10], [9, 9], [16]],
        v_dims=[[12], [8, 6], [10, 33], [12]],
    ),
    ('pvtv2', 'regroup'): dict(
        num_heads=[[1], [1, 3], [1, 1], [1]],
        qk_dims=[[7], [4, 6], [3, 9], [7]],
        v_dims=[[5], [9, 3], [10, 7], [10]],
    ),
}
for policy in HEAD_POLICIES:
    TARGETS['dinov2', policy] = TARGETS['deit', policy]
ROTARY = {  # heads of 8, 6, 8, 4, 10 channels
    'within': dict(qk_dims=[[12, 4, 6, 8, 18]], v_dims=[[9, 16, 17, 4, 3]]),
    'select': dict(num_heads=[[2, 1, 1, 3, 3]], qk_dims=[[16, 6, 8, 12, 30]], v_dims=[[8, 15, 17, 24, 9]]),
}
ROTARY['regroup'] = ROTARY['select']  # is refused
TARGETS |= {('dinov3', policy): widths for policy, widths in ROTARY.items()}
THREE_HEADS = dict(family='deit', embed_dims=[16], depths=[1], num_heads=3, mlp_hidden_dims=32, img_size=64)
THREE_HEADS |= dict(qk_dims=6, v_dims=9, qk_scales=0.5)


@pytest.fixture
def source(family, tiny_arch) -> ArchSpec:
    return ArchSpec.from_dict(tiny_arch(family))


def target_of(source: ArchSpec, policy: str) -> ArchSpec:
    return source.with_widths(TARGETS[source.family, policy])


def cost(budget: Budget, arch: ArchSpec) -> int:
    return total(budget.terms(arch, 10), widths_of(arch))


@pytest.mark.parametrize('policy', HEAD_POLICIES)
def test_every_policy_plans(source, policy):
    target, scores = target_of(source, policy), random_scores(source, 0)
    if source.kind.rotary and policy == 'regroup':
        with pytest.raises(ValueError, match="'regroup': rotary channels belong to their heads; take 'within' or"):
            plan_for_target(source, target, scores, policy)
        return
    plan = plan_for_target(source, target, scores, policy)
    assert replace(plan.target_arch, name='') == replace(target, name='')


@pytest.mark.parametrize('policy', ['within', 'select'])
def test_what_is_kept_computes_what_was_scored(family, source, policy, build, image, distance):
    dense, target = build(family, source).double(), target_of(source, policy)
    plan = plan_for_target(source, target, random_scores(source, 1), policy)
    state = slice_state({f'backbone.{k}': v for k, v in dense.state_dict().items()}, plan)
    sliced = build(family, plan.target_arch).double()
    sliced.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    dims = prunable_dims(source)
    values = {n: torch.zeros(d.size, dtype=torch.float64).index_fill(0, plan.kept[n], 1.0) for n, d in dims.items()}
    x = image(64, 64).double()
    with torch.no_grad(), gates(dense, values):
        assert distance(sliced(x)[-1], dense(x)[-1]) < 1e-10


@pytest.mark.parametrize('policy', HEAD_POLICIES)
def test_ties_are_refused(source, policy):
    with pytest.raises(
        ValueError,
        match=r'tie_qkv: stages.0.blocks.0.qk and stages.0.blocks.0.v have different widths and cannot share one '
        r'index set \(\d+ and \d+ channels in the source\); leave tie_qkv out',
    ):
        plan_for_target(source, target_of(source, policy), random_scores(source, 0), policy, tie_qkv=True)


def test_select_goes_by_the_mean_of_a_head():
    """Means of q/k 2, 6, 1 and of v 5, 0, 7: the sums are 7, 6, 8. By sums over channels head 1 would be 12 of 19."""
    source = ArchSpec.from_dict(THREE_HEADS)
    scores = random_scores(source, 0)
    scores['stages.0.blocks.0.qk'] = torch.tensor([1.0, 3, 6, 6, 2, 0])
    scores['stages.0.blocks.0.v'] = torch.tensor([5.0, 9, 1, 0, 0, 0, 7, 6, 8])
    target = source.with_widths(dict(num_heads=2, qk_dims=4, v_dims=6))
    kept = plan_for_target(source, target, scores, 'select').kept
    assert kept['stages.0.blocks.0.qk'].tolist() == [0, 1, 4, 5]
    assert kept['stages.0.blocks.0.v'].tolist() == [0, 1, 2, 6, 7, 8]
    with pytest.raises(ValueError, match=r"blocks.0.v: head_policy 'select' keeps heads of 3 channels, the target has"):
        plan_for_target(source, target.with_widths(dict(v_dims=4)), scores, 'select')


@pytest.mark.parametrize('non_uniform', [False, True])
@pytest.mark.parametrize('policy', ['within', 'select'])
@pytest.mark.parametrize('text', ['macs=60%@64x64', 'params=60%'])
def test_budgets_are_met(source, policy, text, non_uniform):
    budget, scores = Budget.parse(text), random_scores(source, 2)
    scores |= {name: 1000 * values for name, values in scores.items() if name.endswith(('embed', 'hidden'))}
    grain = Grain(round_to=1, head_policy=policy)
    check_budget(source, budget, grain, 10)
    target = target_for_budget(source, budget, grain, 10, scores if non_uniform else None)
    assert 0.594 <= cost(budget, target) / cost(budget, source) <= 0.6
    assert target.qk_dims != source.qk_dims
    assert plan_for_target(source, target, scores, policy).target_arch == target


@pytest.mark.parametrize('policy', ['within', 'select'])
def test_budgets_refuse_to_tie(source, policy):
    grain, scores = Grain(round_to=1, head_policy=policy, tie_qkv=True), random_scores(source, 0)
    for call in (
        lambda: check_budget(source, Budget.parse('params=60%'), grain, 10),
        lambda: target_for_budget(source, Budget.parse('params=60%'), grain, 10),
        lambda: target_for_budget(source, Budget.parse('params=60%'), grain, 10, scores),
        lambda: narrowest(source, grain),
    ):
        with pytest.raises(ValueError, match=r'tie_qkv: .* have different widths and cannot share one index set'):
            call()


def test_whole_heads_keep_the_same_share_of_qk_and_v():
    """The worst of three heads goes first, of all its channels of q/k (2) and of v (3) the score is lost."""
    source = ArchSpec.from_dict(THREE_HEADS)
    scores = {name: torch.full((dim.size,), 1e6) for name, dim in prunable_dims(source).items()}
    scores['stages.0.blocks.0.qk'] = torch.tensor([1.0, 1, 0, 0, 9, 9])
    scores['stages.0.blocks.0.v'] = torch.tensor([1.0, 1, 1, 0, 1, 0, 9, 9, 9])
    expected = source.with_widths(dict(num_heads=2, qk_dims=4, v_dims=6))
    budget = Budget('params', count_params(expected, 10))
    target = target_for_budget(source, budget, Grain(1, head_policy='select'), 10, scores)
    assert replace(target, name='') == expected


# ------------------------------------------------------------------------ hybrid


def test_channels_near_the_cut(source):
    """Dims of any widths are looked at by themselves; those that no plan ties are not summed."""
    scores, target = random_scores(source, 3), target_of(source, 'within')
    partners = {name: dim.partners() for name, dim in prunable_dims(source).items() if dim.paired}
    scores |= {name: scores[name] + scores[name][pairs] for name, pairs in partners.items()}
    kept = plan_for_target(source, target, scores).kept
    groups = {name: dim.groups for name, dim in prunable_dims(source).items()}
    assert all(torch.equal(values, scores[name]) for name, values in tied(scores).items())
    near = near_cut(tied(scores), kept, groups, 0.3, partners)
    exact = {name: -values for name, values in scores.items()}
    result = rerank(scores, exact, near, groups)
    for name in scores:
        assert torch.equal(result[name].sort().values, scores[name].sort().values)
    again = plan_for_target(source, target, result).kept
    assert {name for name in kept if not torch.equal(kept[name], again[name])} == set(near)
