"""Sliced network == gated dense network, and the algebra of slicing."""

from __future__ import annotations

import json
import random

import pytest
import torch

from upvit_mm.arch import ArchSpec
from upvit_mm.files import unsealed
from upvit_mm.pruning import PrunePlan, make_plan, prunable_dims, slice_state
from upvit_mm.pruning.depth import all_blocks, branches, removal_candidates, remove
from upvit_mm.pruning.gates import gates

X = dict(height=64, width=80)


def random_kept(spec: ArchSpec, seed: int, share=(0.3, 0.9)) -> dict[str, torch.Tensor]:
    """Channels drawn at random, equally many of each head."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    kept = {}
    for dim in prunable_dims(spec).values():
        run = dim.size // dim.groups
        part = run // dim.unit
        count = max(1, int(part * rng.uniform(*share)))
        places = [torch.randperm(part, generator=generator)[:count].sort().values for _ in range(dim.groups)]
        runs = [p + g * run + copy * part for g, p in enumerate(places) for copy in range(dim.unit)]
        kept[dim.name] = torch.cat(runs)
    return kept


def random_blocks(spec: ArchSpec, seed: int) -> list:
    rng = random.Random(seed)
    stages = []
    for depth in spec.depths:
        pairs = all_blocks(depth)
        for _ in range(rng.randrange(depth)):
            pairs = remove(pairs, rng.choice(removal_candidates(pairs)))
        stages.append(pairs)
    return stages


def gates_of(plan: PrunePlan) -> dict[str, torch.Tensor]:
    """The gates that make the dense network compute what the plan leaves."""
    values = {}
    for dim in prunable_dims(plan.source_arch).values():
        values[dim.name] = torch.zeros(dim.size, dtype=torch.float64).index_fill(0, plan.kept[dim.name], 1.0)
    for i, pairs in enumerate(plan.kept_blocks):
        for kind, j in branches(all_blocks(plan.source_arch.depths[i])):
            values[f'stages.{i}.blocks.{j}.{kind}'] = torch.tensor(float((kind, j) in branches(pairs)))
    return values


def sliced_backbone(build, family, dense, plan):
    state = slice_state({f'backbone.{k}': v for k, v in dense.state_dict().items()}, plan)
    backbone = build(family, plan.target_arch).double()
    backbone.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    return backbone


@pytest.mark.parametrize('seed', range(6))
def test_sliced_equals_gated(family, build, image, distance, seed):
    """All dims and depth at once, odd widths, every block its own."""
    dense = build(family, seed=seed).double()
    plan = make_plan(dense.arch, random_kept(dense.arch, seed), random_blocks(dense.arch, seed))
    assert plan.target_arch.embed_dims != dense.arch.embed_dims
    sliced, x = sliced_backbone(build, family, dense, plan), image(**X).double()
    with torch.no_grad():
        with gates(dense, gates_of(plan)):
            gated = dense(x)
        plain = dense(x)
        for small, big, whole, i in zip(sliced(x), gated, plain, range(4)):
            kept = plan.kept[f'stages.{i}.embed']
            assert distance(small, big[:, kept]) < 1e-10
            assert distance(big[:, kept], whole[:, kept]) > 1e-3  # the plan does change something
            lost = [c for c in range(big.shape[1]) if c not in kept]
            assert big[:, lost].abs().max() == 0


def test_keeping_all_is_bit_identical(family, build, identical):
    dense = build(family)
    state = {f'backbone.{k}': v for k, v in dense.state_dict().items()}
    plan = make_plan(dense.arch, {}, name=dense.arch.name)
    assert plan.target_arch == dense.arch
    sliced = slice_state(state, plan)
    assert identical(sliced, state)
    assert not {v.data_ptr() for v in sliced.values()} & {v.data_ptr() for v in state.values()}


def test_slicing_twice_equals_composed_indices(family, build, identical):
    spec = build(family).arch
    state = {f'backbone.{k}': v for k, v in build(family).state_dict().items()}
    first = make_plan(spec, random_kept(spec, 1, (0.6, 0.9)))
    second = make_plan(first.target_arch, random_kept(first.target_arch, 2))
    composed = make_plan(spec, {name: first.kept[name][second.kept[name]] for name in first.kept})
    assert composed.target_arch == second.target_arch
    assert identical(slice_state(slice_state(state, first), second), slice_state(state, composed))


def test_the_head_follows_the_last_embedding(family, build):
    dense = build(family)
    state = {f'backbone.{k}': v for k, v in dense.state_dict().items()}
    state |= {'head.fc.weight': torch.randn(7, dense.arch.embed_dims[-1]), 'head.fc.bias': torch.randn(7)}
    last = f'stages.{dense.arch.num_stages - 1}.embed'
    sliced = slice_state(state, make_plan(dense.arch, {last: [1, 4, 6]}))
    assert torch.equal(sliced['head.fc.weight'], state['head.fc.weight'][:, [1, 4, 6]])
    assert torch.equal(sliced['head.fc.bias'], state['head.fc.bias'])


def test_a_stock_scale_is_folded_into_q(family, build, image, distance):
    """The target has the default scale of its own width; the logits stay those of the dense network."""
    dense = build(family).double()
    kept, x = random_kept(dense.arch, 3), image(**X).double()
    plan = make_plan(dense.arch, kept)
    default = ArchSpec.from_dict({k: v for k, v in plan.target_arch.to_dict().items() if k != 'qk_scales'}).qk_scales
    folded = make_plan(dense.arch, kept, qk_scales=default)
    assert folded.target_arch.qk_scales == default != plan.target_arch.qk_scales
    with torch.no_grad():
        for a, b in zip(*(sliced_backbone(build, family, dense, p)(x) for p in (plan, folded))):
            assert distance(a, b) < 1e-10


def test_gates_leave_no_trace(family, build, image):
    dense, x = build(family), image(**X)

    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in dense.modules()]

    before, outs = hooks(), [o.clone() for o in dense(x)]
    values = {
        name: torch.zeros(dim.size).index_fill(0, torch.tensor([0]), 1)
        for name, dim in prunable_dims(dense.arch).items()
    }
    with gates(dense, values):
        assert hooks() != before
        assert not torch.equal(dense(x)[-1], outs[-1])
    with pytest.raises(RuntimeError, match='stop'), gates(dense, values):
        raise RuntimeError('stop')
    assert hooks() == before
    assert all(torch.equal(a, b) for a, b in zip(dense(x), outs))
    with (
        pytest.raises(ValueError, match=r"gate 'stages.9.embed'"),
        gates(dense, {'stages.0.embed': values['stages.0.embed'], 'stages.9.embed': 1}),
    ):
        pass
    assert hooks() == before


def test_gates_broadcast_over_candidates(family, build, image, distance):
    """Each image of a batch its own gate, against one network run per gate."""
    dense, x = build(family).double(), image(**X, batch=1).double()
    for name, dim in prunable_dims(dense.arch).items():
        dropped = [0, dim.size // 2, dim.size - 1]
        each = torch.ones(len(dropped), 1, dim.size, dtype=torch.float64)
        each[torch.arange(len(dropped)), 0, dropped] = 0
        with torch.no_grad():
            with gates(dense, {name: each}):
                together = dense(x.expand(len(dropped), -1, -1, -1))[-1]
            for row, gate in zip(together, each):
                with gates(dense, {name: gate[0]}):
                    assert distance(row[None], dense(x)[-1]) < 1e-12


# ---------------------------------------------------------------------- depth


def test_a_stage_of_l_blocks_has_2l_minus_1_candidates():
    for depth in range(2, 6):
        pairs = all_blocks(depth)
        candidates = removal_candidates(pairs)
        assert len(candidates) == 2 * depth - 1
        assert len({remove(pairs, c) for c in candidates}) == 2 * depth - 1
    assert remove(all_blocks(3), (('attn', 1), ('mlp', 1))) == ((0, 0), (2, 2))
    assert remove(all_blocks(3), (('mlp', 0), ('attn', 1))) == ((0, 1), (2, 2))
    assert removal_candidates(all_blocks(1)) == []
    with pytest.raises(ValueError, match='no two neighbours'):
        remove(all_blocks(3), (('attn', 0), ('attn', 1)))


# ----------------------------------------------------------------------- plan


def test_plan_survives_its_file(family, build, tmp_path):
    spec = build(family).arch
    plan = make_plan(spec, random_kept(spec, 5), random_blocks(spec, 5), name='small')
    loaded = PrunePlan.load(plan.save(tmp_path / 'plan.json'))
    assert loaded.target_arch == plan.target_arch
    assert loaded.kept_blocks == plan.kept_blocks
    assert all(torch.equal(loaded.kept[name], plan.kept[name]) for name in plan.kept)


def test_a_plan_of_directions_is_a_file_of_its_own_version(build, tmp_path):
    """An older package, which takes every kept index for a channel, must refuse it."""
    spec = build('deit').arch
    for turned, version in (((), 1), (('stages.0.embed',), 2)):
        plan = make_plan(spec, random_kept(spec, 5) | {'stages.0.embed': [0, 3, 9]}, turned=turned)
        path = plan.save(tmp_path / 'plan.json')
        content = json.loads(path.read_text())
        assert content['version'] == version
        assert content.get('turned', []) == list(turned)
        loaded = PrunePlan.load(path)
        assert loaded.turned == turned
        assert loaded.target_arch == plan.target_arch
        assert all(torch.equal(loaded.kept[name], plan.kept[name]) for name in plan.kept)
    text = json.dumps(unsealed(content, 'plan'))
    path.write_text(text.replace('"stages.0.embed": [0, 3, 9]', '"stages.0.embed": [1, 3, 9]'))
    with pytest.raises(ValueError, match=r"damaged or no plan: turned has 'stages.0.embed': must name an embed dim"):
        PrunePlan.load(path)


@pytest.mark.parametrize(
    ('name', 'kept'),
    [('stages.0.embed', [1, 2]), ('stages.0.blocks.0.mlp_hidden', [0, 1]), ('stages.1.embed', [0]), ('embed', [0])],
)
def test_only_an_embedding_with_its_mean_has_directions(build, name, kept):
    spec = build('deit').arch
    given = {name: kept} if name in prunable_dims(spec) else {}
    with pytest.raises(ValueError, match=f"turned has '{name}': must name an embed dim of the source that keeps"):
        make_plan(spec, given, turned=[name])


def test_a_damaged_plan_is_refused(build, tmp_path):
    spec = build('pvtv2').arch
    path = make_plan(spec, {'stages.0.embed': [0, 2]}).save(tmp_path / 'plan.json')
    text = json.dumps(unsealed(json.loads(path.read_text()), 'plan'))  # as a person may write it
    for damaged, message in (
        (text[:-40], 'damaged or no plan'),
        (text.replace('"version": 1, "source', '"version": 7, "source'), 'has version 7'),
        (text.replace('"stages.0.embed": [0, 2]', '"stages.0.embed": [0, 2, 3]'), 'do not give its target_arch'),
        ('[]', 'damaged or no plan'),
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=message):
            PrunePlan.load(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.json' does not exist"):
        PrunePlan.load('nowhere.json')


@pytest.mark.parametrize(
    ('kept', 'blocks', 'message'),
    [
        ({'stages.0.width': [0]}, None, r'unknown dim\(s\) stages.0.width'),
        ({'stages.0.embed': [0, 16]}, None, r"kept\['stages.0.embed'\] = \[0, 16\]"),
        ({'stages.0.embed': [3, 1]}, None, r'must be sorted, unique'),
        ({'stages.0.embed': [1, 1]}, None, r'must be sorted, unique'),
        ({'stages.0.embed': []}, None, r'1 or more'),
        ({'stages.0.embed': [0.5]}, None, r'must be sorted, unique'),
        ({'stages.1.blocks.1.qk': [0, 1]}, None, r'qk_dims\[1\]\[1\] = 2: must be a multiple of num_heads'),
        ({}, [[(0, 0)]], r'kept_blocks has 1 stage\(s\)'),
        ({}, [[(0, 0)], [(1, 0)], [(0, 0)], [(0, 0)]], r'kept_blocks\[1\] = \[\[1, 0\]\]'),
        ({}, [[(0, 0)], [], [(0, 0)], [(0, 0)]], r'kept_blocks\[1\] = \[\]'),
        ({}, [[(0, 1)], [(0, 0)], [(0, 0)], [(0, 0)]], r'kept_blocks\[0\] = \[\[0, 1\]\]'),
    ],
)
def test_impossible_plans(build, kept, blocks, message):
    with pytest.raises(ValueError, match=message):
        make_plan(build('pvtv2').arch, kept, blocks)


def test_a_checkpoint_of_another_arch_is_refused(build):
    plan = make_plan(build('pvtv2').arch, {'stages.0.embed': [0, 1]})
    state = {f'backbone.{k}': v for k, v in build('pvtv2').state_dict().items()}
    wide = build('pvtv2', build('pvtv2').arch.to_dict() | {'mlp_hidden_dims': 50})
    with pytest.raises(ValueError, match=r'blocks.0.mlp.fc1.weight has shape \(50, 16\)'):
        slice_state({f'backbone.{k}': v for k, v in wide.state_dict().items()}, plan)
    del state['backbone.stages.0.norm.weight']
    with pytest.raises(ValueError, match=r'has no backbone.stages.0.norm.weight'):
        slice_state(state, plan)
