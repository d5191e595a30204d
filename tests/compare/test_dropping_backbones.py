"""Backbones that drop tokens in a detector's training."""

from __future__ import annotations

import copy

import pytest
import torch

import upvit_mm.compare.dropping_backbones  # noqa: F401 (registers them)
from upvit_mm.arch import ArchSpec
from upvit_mm.compare.token_dropping import PVTv2Dropping, ViTDropping
from upvit_mm.models.network import macs_of
from upvit_mm.pruning.costs import count_macs
from upvit_mm.registry import MODELS

KINDS = {'deit': ('DroppingViT', 'UPViT', ViTDropping), 'pvtv2': ('DroppingPVTv2', 'UPPVTv2', PVTv2Dropping)}


@pytest.fixture
def build(tiny_arch):
    """Build the backbone that drops tokens, or the dense one, with the same weights."""

    def build(family: str, dropping: bool, **settings):
        kind = KINDS[family][0 if dropping else 1]
        torch.manual_seed(0)
        return MODELS.build(dict(type=f'upvit_mm.{kind}', arch=tiny_arch(family), **settings))

    return build


def test_it_equals_the_wrapper_of_the_dense_backbone(build, family):
    dense, dropping = build(family, False).eval(), build(family, True, keep_rate=0.6)
    assert dropping.training
    assert {n: v.shape for n, v in dropping.state_dict().items()} == {n: v.shape for n, v in dense.state_dict().items()}
    dropping.load_state_dict(dense.state_dict())
    wrapper = KINDS[family][2](dense, 0.6, 'last')
    images = torch.randn(2, 3, 64, 96)
    for ours, theirs in zip(dropping.eval()(images), wrapper(images), strict=True):
        assert torch.equal(ours, theirs)
    assert macs_of(dropping, (64, 96)) == wrapper.macs((64, 96)) < macs_of(dense, (64, 96))
    assert copy.deepcopy(dropping)(images)[0].equal(dropping(images)[0])


def test_all_its_blocks_are_trained_in_bfloat16_too(build, family):
    dropping = build(family, True, keep_rate=0.6)
    with torch.autocast('cpu', torch.bfloat16):
        loss = sum(out.float().square().mean() for out in dropping(torch.randn(2, 3, 64, 64)))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dropping.stages.parameters())


def test_a_cost_out_of_reach_is_said(build, family, tiny_arch, caplog):
    arch = tiny_arch(family)
    pruned = ArchSpec.from_dict({**arch, 'mlp_hidden_dims': [[1 for _ in stage] for stage in arch['mlp_hidden_dims']]})
    dropping = build(family, True, keep_rate=pruned.to_dict(), start=[4] if family == 'deit' else 3)
    for _ in range(2):
        cost = dropping.macs((64, 64))
    (said,) = [record.getMessage() for record in caplog.records if 'token dropping costs' in record.getMessage()]
    assert said.startswith(
        f'token dropping costs {cost} MACs at 64x64, where {count_macs(pruned, (64, 64))} are wanted'
    )


def test_the_rate_of_a_pruned_arch_meets_its_cost(build, family, tiny_arch):
    arch = tiny_arch(family)
    hidden = [[max(width // 2, 1) for width in stage] for stage in arch['mlp_hidden_dims']]
    pruned = ArchSpec.from_dict({**arch, 'mlp_hidden_dims': hidden})
    dropping = build(family, True, keep_rate=pruned.to_dict())
    assert dropping.eval()(torch.randn(1, 3, 32, 32))[-1].isfinite().all()  # too few tokens to meet it within 1 %
    assert dropping.macs((128, 128)) == pytest.approx(
        macs_of(MODELS.build(dict(type=f'upvit_mm.{KINDS[family][1]}', arch=pruned.to_dict())), (128, 128)), rel=0.01
    )
