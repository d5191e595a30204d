"""From scores to kept channels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.pruning import plan_for_target, prunable_dims, slice_state
from upvit_mm.pruning.baselines import random_scores
from upvit_mm.pruning.planner import best
from upvit_mm.pruning.token_net import TokenNet

SOURCE = dict(family='deit', embed_dims=[24], depths=[2], num_heads=4, mlp_hidden_dims=48, img_size=64)


@pytest.fixture
def source() -> ArchSpec:
    return ArchSpec.from_dict(SOURCE)


def scores_of(spec: ArchSpec, **given) -> dict:
    """Random scores, with some given by the end of the dim's name."""
    scores = random_scores(spec, seed=0)
    for name in scores:
        for key, value in given.items():
            if name.endswith(key):
                scores[name] = torch.tensor(value, dtype=torch.float64)
    return scores


def target_of(**widths) -> ArchSpec:
    return ArchSpec.from_dict(SOURCE | widths)


def test_best_is_the_tail_of_a_stable_ascending_sort():
    assert best(torch.tensor([3.0, 1.0, 2.0, 5.0]), 2, '').tolist() == [0, 3]
    assert best(torch.tensor([1.0, 1.0, 1.0, 0.0]), 2, '').tolist() == [1, 2]
    scores = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(0)).double()
    assert best(scores, 20, '').tolist() == sorted(sorted(range(50), key=lambda c: (scores[c], c))[-20:])


def test_within_keeps_the_best_of_each_head(source):
    qk = [5, 4, 3, 2, 1, 0] * 2 + [0, 1, 2, 3, 4, 5] * 2
    plan = plan_for_target(source, target_of(qk_dims=8), scores_of(source, qk=qk))
    assert plan.kept['stages.0.blocks.1.qk'].tolist() == [0, 1, 6, 7, 16, 17, 22, 23]
    assert plan.target_arch.num_heads == ((4, 4),)
    assert plan.target_arch.v_dims == ((24, 24),)


def test_select_keeps_the_same_whole_heads_in_qk_and_v(source):
    qk, v = [0] * 6 + [5] * 6 + [4] * 6 + [0] * 6, [9] * 6 + [0] * 6 + [6] * 6 + [1] * 6  # sums 9, 5, 10, 1
    target = target_of(qk_dims=12, v_dims=12, num_heads=2)
    plan = plan_for_target(source, target, scores_of(source, qk=qk, v=v), head_policy='select')
    for kind in ('qk', 'v'):
        assert plan.kept[f'stages.0.blocks.0.{kind}'].tolist() == [*range(6), *range(12, 18)]


def test_regroup_is_an_argsort_in_each_run(source):
    target = target_of(qk_dims=12, v_dims=12, num_heads=2)
    scores = scores_of(source)
    plan = plan_for_target(source, target, scores, head_policy='regroup')
    for kind in ('qk', 'v'):
        values = scores[f'stages.0.blocks.1.{kind}'].tolist()
        runs = [sorted(sorted(range(k, k + 12), key=values.__getitem__)[-6:]) for k in (0, 12)]
        assert plan.kept[f'stages.0.blocks.1.{kind}'].tolist() == runs[0] + runs[1]


def test_tied_qkv_share_one_index_set(source):
    scores = scores_of(source)
    target = target_of(qk_dims=16, v_dims=16)
    free, tied = (plan_for_target(source, target, scores, tie_qkv=tie).kept for tie in (False, True))
    assert not torch.equal(free['stages.0.blocks.0.qk'], free['stages.0.blocks.0.v'])
    assert torch.equal(tied['stages.0.blocks.0.qk'], tied['stages.0.blocks.0.v'])
    with pytest.raises(ValueError, match='cannot share one index set'):
        plan_for_target(source, target_of(qk_dims=16), scores, tie_qkv=True)


def test_embedding_and_mlp_follow_their_scores(source):
    scores = scores_of(source)
    plan = plan_for_target(
        source, target_of(embed_dims=[20], mlp_hidden_dims=[[30, 40]], qk_dims=24, v_dims=24), scores
    )
    for name, count in (
        ('stages.0.embed', 20),
        ('stages.0.blocks.0.mlp_hidden', 30),
        ('stages.0.blocks.1.mlp_hidden', 40),
    ):
        kept = plan.kept[name]
        assert len(kept) == count
        lost = [c for c in range(len(scores[name])) if c not in kept]
        assert scores[name][kept].min() >= scores[name][lost].max()


def test_the_mean_of_a_turned_stream_always_stays(source, build):
    embed, target = 'stages.0.embed', target_of(embed_dims=[3], qk_dims=24, v_dims=24)
    scores, net = scores_of(source, embed=[9.0, *range(23)]), TokenNet(build('deit', SOURCE))
    scores[embed][[4, 8]] = 30.0
    assert net.with_means(scores)[embed] is scores[embed]
    net.turned = frozenset([embed])
    with_means = net.with_means(scores)
    assert with_means[embed].tolist() == [scores[embed][1:].sum() + 1, *scores[embed][1:].tolist()]
    assert all(with_means[name] is scores[name] for name in scores if name != embed)
    plan = plan_for_target(source, target, with_means, turned=[embed])
    assert plan.turned == (embed,)
    assert plan.kept[embed].tolist() == [0, 4, 8]
    with pytest.raises(ValueError, match=r"turned has 'stages.0.embed': must name an embed dim .* keeps direction 0"):
        plan_for_target(source, target, scores, turned=[embed])


@pytest.mark.parametrize(
    ('dense', 'stock', 'policy'),
    [('deit-base', 'deit-small', 'regroup'), ('deit-base', 'deit-tiny', 'regroup'), ('pvtv2-b1', 'pvtv2-b0', 'within')],
)
def test_stock_targets_of_the_paper(dense, stock, policy):
    """Widths, heads and scales are those of the stock architecture, so its file loads as one."""
    source, target = get_arch(dense), get_arch(stock)
    plan = plan_for_target(source, target, random_scores(source, 0), head_policy=policy)
    assert plan.target_arch == target


def test_depth_only_target():
    """PVTv2-B2 to B1: the widths are equal, the blocks are chosen."""
    source, target = get_arch('pvtv2-b2'), get_arch('pvtv2-b1')
    blocks = (((0, 0), (1, 2)), ((0, 0), (3, 3)), ((0, 0), (4, 5)), ((0, 1), (2, 2)))
    plan = plan_for_target(source, target, random_scores(source, 0), kept_blocks=blocks)
    assert plan.target_arch == target
    assert all(len(plan.kept[name]) == dim.size for name, dim in prunable_dims(source).items())
    with pytest.raises(ValueError, match=r'target depths = \[2, 2, 2, 2\]: kept_blocks leave \[3, 4, 6, 3\]'):
        plan_for_target(source, target, random_scores(source, 0))


@pytest.mark.parametrize('policy', ['within', 'select'])
def test_head_policies_that_keep_the_function(build, image, distance, policy):
    """Gating what is not kept gives what the sliced network computes, though its scale is the stock one."""
    from upvit_mm.pruning.gates import gates

    dense = build('deit', SOURCE).double()
    widths = dict(qk_dims=12, v_dims=12, num_heads=2 if policy == 'select' else 4)
    plan = plan_for_target(dense.arch, target_of(**widths), scores_of(dense.arch), head_policy=policy)
    assert plan.target_arch.qk_scales == target_of(**widths).qk_scales
    state = slice_state({f'backbone.{k}': v for k, v in dense.state_dict().items()}, plan)
    sliced = build('deit', plan.target_arch).double()
    sliced.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    dims = prunable_dims(dense.arch)
    values = {n: torch.zeros(d.size, dtype=torch.float64).index_fill(0, plan.kept[n], 1.0) for n, d in dims.items()}
    x = image(64, 64).double()
    with torch.no_grad(), gates(dense, values):
        assert distance(sliced(x)[0], dense(x)[0]) < 1e-10


def test_impossible_wishes(source):
    scores = scores_of(source)
    for widths, policy, message in (
        (dict(embed_dims=[32], qk_dims=24, v_dims=24), 'within', r'stages.0.embed: the target keeps 32 of 24'),
        (dict(num_heads=2), 'within', r"'within' keeps the 4 heads, the target has 2"),
        (dict(qk_dims=8), 'select', r"'select' keeps heads of 6 channels, the target has 8 in 4 heads"),
        (
            dict(num_heads=5, qk_dims=10, v_dims=10),
            'regroup',
            r'24 channels and 10 kept ones do not divide',
        ),
        ({}, 'best', r"head_policy = 'best'"),
    ):
        with pytest.raises(ValueError, match=message):
            plan_for_target(source, target_of(**widths), scores, head_policy=policy)
    with pytest.raises(ValueError, match="target family = 'pvtv2'"):
        plan_for_target(source, get_arch('pvtv2-b0'), scores)
    for name, bad, message in (
        ('stages.0.embed', None, "scores lack 'stages.0.embed'"),
        ('stages.0.embed', torch.zeros(23), r'have shape \(23,\): the dim has 24 channels'),
        ('stages.0.blocks.1.v', torch.full((24,), float('nan')), "scores of 'stages.0.blocks.1.v' hold NaN"),
    ):
        wrong = {k: v for k, v in (scores | {name: bad}).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            plan_for_target(source, source, wrong)


@pytest.mark.parametrize(('field', 'value'), [('sr_ratios', (8, 4, 2, 2)), ('in_channels', 1)])
def test_what_pruning_cannot_change_is_refused(field, value):
    source = get_arch('pvtv2-b0')
    with pytest.raises(ValueError, match=rf'target {field} = .*: pruning cannot change it, the source has'):
        plan_for_target(source, replace(source, **{field: value}), random_scores(source, 0))
