"""A third family needs a value, a backbone and a table, and then the whole package knows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fixtures.toy_family import ARCH, TOY, UPToy
from mmengine.config import Config
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.family import FAMILIES
from upvit_mm.compare.token_dropping import drop_tokens
from upvit_mm.consistency import common_stages
from upvit_mm.models import build_backbone
from upvit_mm.models.network import Network
from upvit_mm.pruning import PrunePlan, fixed_axes, make_plan, plan_for_target, prunable_dims, slice_state
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs, count_params
from upvit_mm.pruning.gates import gates
from upvit_mm.registry import MODELS, require_families
from upvit_mm.workflow.prune import PruneJob
from upvit_mm.workflow.prune_settings import PruneSettings

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def toy(monkeypatch) -> Iterator[None]:
    monkeypatch.setitem(FAMILIES, 'toy', TOY)
    monkeypatch.setitem(MODELS._module_dict, 'UPToy', UPToy)


@pytest.fixture
def dense(randomise) -> UPToy:
    return randomise(build_backbone(ArchSpec.from_dict(ARCH))).double().eval()


def state_of(backbone: nn.Module) -> dict[str, torch.Tensor]:
    return {f'backbone.{k}': v for k, v in backbone.state_dict().items()}


def sliced_by(dense: UPToy, plan: PrunePlan) -> UPToy:
    sliced = build_backbone(plan.target_arch).double().eval()
    state = slice_state(state_of(dense), plan)
    sliced.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    return sliced


def assert_equal_to_gated(dense: UPToy, plan: PrunePlan, distance) -> None:
    values = {
        name: torch.zeros(dim.size, dtype=torch.float64).index_fill(0, plan.kept[name], 1.0)
        for name, dim in prunable_dims(dense.arch).items()
    }
    x = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    with torch.no_grad(), gates(dense, values):
        gated = dense(x)
    with torch.no_grad():
        for i, (small, big, whole) in enumerate(zip(sliced_by(dense, plan)(x), gated, dense(x))):
            kept = plan.kept[f'stages.{i}.embed']
            assert distance(small, big[:, kept]) < 1e-10
            assert distance(small, whole[:, kept]) > 1e-3


def test_every_axis_is_claimed_once_or_fixed(dense):
    shapes = {k: v.shape for k, v in state_of(dense).items()}
    shapes |= {'head.fc.weight': (7, 20), 'head.fc.bias': (7,)}
    dims = prunable_dims(dense.arch)
    claims = Counter(slot[:2] for dim in dims.values() for slot in dim.slots)
    fixed = {slot[:2] for slot in fixed_axes(dense.arch)}
    assert max(claims.values()) == 1
    assert not set(claims) & fixed
    assert set(claims) | fixed == {(key, axis) for key, shape in shapes.items() for axis in range(len(shape))}
    for dim in dims.values():
        for slot in dim.slots:
            assert shapes[slot.tensor][slot.axis] == slot.length(dim.size, dim.groups)


def test_merged_patches_keep_the_same_channels_of_each_neighbour(dense, distance):
    plan = make_plan(dense.arch, {'stages.0.embed': [0, 2, 3, 7, 11]})
    state, source = slice_state(state_of(dense), plan), dense.stages[1].patch_embed.proj.weight
    places = [c + 12 * copy for copy in range(4) for c in (0, 2, 3, 7, 11)]
    assert torch.equal(state['backbone.stages.1.patch_embed.proj.weight'], source[:, places])
    assert_equal_to_gated(dense, plan, distance)


def test_biases_go_with_their_head(dense, distance):
    """Heads 0 and 2 of three stay."""
    kept = {'stages.0.blocks.1.qk': [0, 1, 2, 6, 7, 8], 'stages.0.blocks.1.v': [0, 1, 2, 3, 8, 9, 10, 11]}
    plan = make_plan(dense.arch, kept, num_heads=[[2, 2], [4]])
    table = slice_state(state_of(dense), plan)['backbone.stages.0.blocks.1.attn.bias_table']
    assert torch.equal(table, dense.stages[0].blocks[1].attn.bias_table[:, [0, 2]])
    assert_equal_to_gated(dense, plan, distance)


def test_all_at_once(dense, distance):
    target = dense.arch.with_widths(
        dict(embed_dims=[8, 15], qk_dims=[[4, 6], [8]], v_dims=[[4, 6], [8]], mlp_hidden_dims=[[7, 9], [11]])
    )
    scores = {name: torch.rand(dim.size) for name, dim in prunable_dims(dense.arch).items()}
    assert_equal_to_gated(dense, plan_for_target(dense.arch, target, scores), distance)


def test_mixed_heads_have_no_biases(dense):
    target = dense.arch.with_widths(dict(num_heads=[[1, 1], [2]], qk_dims=[[4, 3], [6]], v_dims=[[3, 4], [8]]))
    scores = {name: torch.rand(dim.size) for name, dim in prunable_dims(dense.arch).items()}
    plan = plan_for_target(dense.arch, target, scores, head_policy='regroup')
    with pytest.raises(ValueError, match=r"attn.bias_table has a place for each head, and .*head_policy='regroup'"):
        slice_state(state_of(dense), plan)


def test_costs(dense):
    assert count_params(dense.arch) == sum(p.numel() for p in dense.parameters())
    tokens = [(64 // 8) * (96 // 8), (64 // 16) * (96 // 16)]
    merging = tokens[1] * 4 * 12 * 20
    assert count_macs(dense.arch, SIZE) == merging + tokens[0] * 64 * 3 * 12 + sum(
        n * (2 * c * qk + 2 * c * v + n * (qk + v) + 2 * c * f)
        for n, c, qk, v, f in [(96, 12, 8, 6, 18), (96, 12, 9, 12, 22), (24, 20, 12, 16, 30)]
    )


def test_the_rest_of_the_package_knows_it(dense):
    assert require_families('model.backbone.type', 'upvit_mm.UPToy') == ('toy',)
    assert common_stages([dense.arch, dense.arch]) == (['stage0', 'stage1'], [(0, 1), (0, 1)])
    with pytest.raises(ValueError, match='backbone = UPToy: token dropping is known for UPDeiT, UPViT and UPPVTv2'):
        drop_tokens(Network(dense), 0.5)
    with pytest.raises(ValueError, match=r"arch family = 'toy': .* use type='upvit_mm.UPToy'"):
        MODELS.get('UPDeiT')(ArchSpec.from_dict(ARCH))


def test_the_pruning_job(digits_folder, scope, tmp_path, randomise):
    """Scored, planned for a budget, sliced and repaired, from a config and a checkpoint."""
    from mmpretrain.registry import MODELS as CLASSIFIERS

    scope('mmpretrain')
    cfg = Config.fromfile(Path(__file__).parents[2] / 'configs/demo/up-pvtv2-micro_digits.py')
    arch = ArchSpec.from_dict(ARCH)
    cfg.model.backbone = dict(type='upvit_mm.UPToy', arch=arch.to_dict())
    cfg.model.head.in_channels = arch.embed_dims[-1]
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.data_root = str(digits_folder / 'classification')
    model = randomise(CLASSIFIERS.build(cfg.model))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'dense.pth')
    settings = PruneSettings(per_class=2, draws=1, eval_images=20, round_to=1, non_uniform=True, compensate=True)
    PruneJob(cfg, str(tmp_path / 'dense.pth'), Budget.parse('macs=50%@64x64'), tmp_path / 'out', settings).run()
    pruned = ArchSpec.from_json(tmp_path / 'out/arch.json')
    assert 0.49 < count_macs(pruned, (64, 64), 10) / count_macs(arch, (64, 64), 10) <= 0.5
    cfg.model.backbone.arch = str(tmp_path / 'out/arch.json')
    cfg.model.head.in_channels = pruned.embed_dims[-1]
    CLASSIFIERS.build(cfg.model).load_state_dict(torch.load(tmp_path / 'out/pruned.pth')['state_dict'])
