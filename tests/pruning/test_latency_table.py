"""Times of parts become costs: they rise with every width, in steps for heads, and a budget spends them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.arch.size import GLOBAL, Windows
from upvit_mm.pruning import plan_for_target, prunable_dims
from upvit_mm.pruning.baselines import random_scores
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import total, widths_of
from upvit_mm.pruning.knobs import Grain
from upvit_mm.pruning.latency_table import ATTN, ENDS, MLP, HeadSurface, LatencyTable, Part, Point, Surface, parts_of
from upvit_mm.pruning.spending import check_budget, target_for_budget


def made_up(part: Part, point: Point) -> float:
    """Seconds: an overhead, and products; heads are padded to 16, hidden widths to 32."""
    if part.kind == ATTN:
        embed, qk, v, heads = point
        padded = max(-(-width // heads // 16) * 16 for width in (qk, v)) * heads
        return 1e-6 * (100 + embed * (2 * qk + 2 * v) / 64 + 20 * padded)
    embed, width = point
    return 1e-6 * (50 + embed * (-(-width // 32) * 32 if part.kind == MLP else width) / 32)


def table_for(arch: ArchSpec, windows: Windows = GLOBAL, by_heads: bool = False) -> LatencyTable:
    parts = parts_of(arch, windows, by_heads)
    seconds = tuple(tuple(made_up(part, point) for point in part.points) for part in parts)
    return LatencyTable(parts, seconds, windows, by_heads, {})


def like_real_scores(arch: ArchSpec, seed: int) -> dict:
    return {n: 10 ** (4 * s - (3 if n.endswith('embed') else 6)) for n, s in random_scores(arch, seed).items()}


def in_time(text: str, arch: ArchSpec, by_heads: bool = False) -> Budget:
    return replace(Budget.parse(text), table=table_for(arch, by_heads=by_heads))


def cost(budget: Budget, source: ArchSpec, arch: ArchSpec) -> int:
    return total(budget.terms(source, 0), widths_of(arch))


def test_blocks_with_the_same_heads_and_windows_share_their_times():
    parts = {part.name: part for part in parts_of(get_arch('pvtv2-b2'))}
    assert [name for name in parts if name.startswith('stages.2')] == [
        'stages.2.ends',
        'stages.2.attn.5x5x5.0',
        'stages.2.mlp',
    ]
    assert len(parts) == 12
    attn = parts['stages.2.attn.5x5x5.0']
    assert (attn.rows, attn.columns) == ((40, 160, 240, 320), (8, 16, 24, 32, 40, 48, 56, 64))
    assert attn.points[:2] == [(40, 40, 40, 5), (40, 80, 80, 5)]
    assert attn.points[-2:] == [(320, 40, 320, 5), (320, 320, 40, 5)]
    windowed = parts_of(get_arch('deit-small'), Windows(14))
    assert [part.name for part in windowed if part.kind == ATTN] == ['stages.0.attn.6x6x6.14', 'stages.0.attn.6x6x6.0']
    heads = next(part for part in parts_of(get_arch('deit-small'), by_heads=True) if part.kind == ATTN)
    assert heads.columns == (1, 2, 3, 4, 5, 6)
    assert heads.points[1] == (48, 128, 128, 2)


def test_surfaces_rise_and_are_linear_between_what_was_measured():
    noisy = np.array([[1.0, 3.0, 2.0], [2.0, 2.0, 5.0]])
    surface = Surface.of((8, 16), (10, 20, 40), noisy)
    assert np.array(surface.values).tolist() == [[1.0, 2.5, 2.5], [2.0, 2.5, 5.0]]
    assert surface(8, 15) == 1.75
    assert surface(12, 30) == pytest.approx((2.5 + 3.75) / 2)
    assert (surface(1, 1), surface(16, 40)) == (1.0, 5.0)
    exact = np.array([[1.0, 2.0], [2.0, 4.0]])
    assert Surface.of((1, 2), (1, 2), exact).values == ((1.0, 2.0), (2.0, 4.0))


def test_heads_cost_steps_and_the_wider_of_two_widths_counts_for_its_share():
    steps = HeadSurface(Surface((8,), (8, 16, 24), ((1.0, 2.0, 4.0),)), (2, 2), (0.75, 0.5))
    assert [steps(8, 2 * d, 2 * d) for d in (4, 8, 9, 16, 17, 24)] == [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert steps(8, 2 * 24, 2 * 8) == 1.0 + 0.75 * 3
    assert steps(8, 2 * 8, 2 * 24) == 1.0 + 0.5 * 3
    part = Part(ATTN, 0, (8,), (8, 16), 1, (1, 1))
    assert part.seconds_at([1.0, 3.0, 1.5, 2.5]) == HeadSurface(
        Surface((8,), (8, 16), ((1.0, 3.0),)), (1, 1), shares=(0.75, 0.25)
    )


@pytest.mark.parametrize('name', ['pvtv2-b0', 'deit-tiny', 'dinov3-small'])
@pytest.mark.parametrize('by_heads', [False, True])
def test_the_dense_cost_is_the_sum_of_the_measured_parts(name, by_heads):
    arch = get_arch(name)
    table = table_for(arch, by_heads=by_heads)
    dense = 0.0
    for i, depth in enumerate(arch.depths):
        embed, heads = arch.embed_dims[i], arch.num_heads[i][0]
        before = arch.embed_dims[i - 1] if i else 3
        dense += made_up(Part(ENDS, i, (), ()), (before, embed))
        attn = made_up(Part(ATTN, i, (), ()), (embed, arch.qk_dims[i][0], arch.v_dims[i][0], heads))
        dense += depth * (attn + made_up(Part(MLP, i, (), ()), (embed, arch.mlp_hidden_dims[i][0])))
    assert total(table.terms(arch), widths_of(arch)) == pytest.approx(1e9 * dense, abs=20)


@pytest.mark.parametrize('by_score', [False, True])
@pytest.mark.parametrize('policy', ['within', 'select'])
def test_budgets_are_met_by_the_table(by_score, policy):
    arch = get_arch('pvtv2-b1')
    budget = in_time('latency=60%@224', arch, policy == 'select')
    scores = random_scores(arch, 0)
    target = target_for_budget(arch, budget, Grain(head_policy=policy), 0, scores if by_score else None)
    assert 0.97 * 0.6 <= cost(budget, arch, target) / cost(budget, arch, arch) <= 0.6
    assert plan_for_target(arch, target, scores, policy).target_arch == target


def test_widths_are_those_that_kernels_like():
    """Heads are padded to 16 channels here, and to the wider of q/k and v: what costs no time is kept."""
    arch = get_arch('deit-tiny')
    budget = in_time('latency=60%', arch)
    target = target_for_budget(arch, budget, Grain(round_to=4), 0, like_real_scores(arch, 0))
    assert target.qk_dims == target.v_dims
    assert {width // 3 for width in target.qk_dims[0]} < {16, 32, 48, 64}


def test_spending_is_near_the_best_there_is():
    """Against every combination of widths of a small network, with times that are flat in places."""
    arch = ArchSpec.from_dict(
        dict(family='deit', embed_dims=[32], depths=[1], num_heads=1, mlp_hidden_dims=128, img_size=64)
    )
    budget = in_time('latency=70%', arch)
    terms, dense = budget.terms(arch, 0), cost(budget, arch, arch)
    ladders = [range(8, 33, 8), range(8, 33, 8), range(8, 33, 8), range(16, 129, 8)]
    names = list(prunable_dims(arch))
    for seed, amount in itertools.product(range(3), (0.6, 0.7, 0.9)):
        scores = like_real_scores(arch, seed)
        kept = {n: s.sort(descending=True).values.cumsum(0) for n, s in scores.items()}

        def lost(widths, kept=kept) -> float:
            return sum(float(kept[name][-1] - kept[name][widths[name] - 1]) for name in names)

        fitting = [dict(zip(names, widths)) for widths in itertools.product(*ladders)]
        best = min(lost(widths) for widths in fitting if total(terms, widths) <= amount * dense)
        chosen = widths_of(target_for_budget(arch, replace(budget, amount=amount), Grain(min_share=0.125), 0, scores))
        assert total(terms, chosen) <= amount * dense
        assert lost(chosen) <= 1.1 * best


def test_out_of_reach_is_said_in_milliseconds():
    arch = get_arch('deit-tiny')
    with pytest.raises(
        ValueError, match=r'latency=5% = \d\.\d+ ms is out of reach: the narrowest network costs .* ms,'
    ):
        check_budget(arch, in_time('latency=5%', arch), Grain())
    with pytest.raises(
        ValueError, match=r'latency=60%: only tools/prune.py measures times; here give macs= or params='
    ):
        check_budget(arch, Budget.parse('latency=60%'), Grain())


def test_times_never_fall_when_a_width_grows():
    """With noise of a quarter on every measured time."""
    arch = get_arch('pvtv2-b0')
    table, noise = table_for(arch), np.random.default_rng(0)
    noisy = replace(
        table, seconds=tuple(tuple(s * noise.uniform(0.75, 1.25) for s in times) for times in table.seconds)
    )
    for term in noisy.terms(arch):
        widths = {name: prunable_dims(arch)[name].size for name in term.dims}
        for name in term.dims:
            ladder = torch.linspace(1, widths[name], 40).long().tolist()
            costs = [term.cost(widths | {name: width}) for width in ladder]
            assert costs == sorted(costs)
