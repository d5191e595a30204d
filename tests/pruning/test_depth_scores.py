"""Which blocks go: greedy, with exact KL, scored again after each removal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upvit_mm.pruning import make_plan, slice_state
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.criteria import log_posteriors
from upvit_mm.pruning.depth import all_blocks, removal_candidates, remove
from upvit_mm.pruning.depth_scores import choose_blocks
from upvit_mm.pruning.posterior import PosteriorNet


def test_each_removal_is_the_one_that_costs_least(build, image, randomise):
    """Against slicing every candidate physically, two removals in a row."""
    net = PosteriorNet(build('deit', out_indices=(-1,)), randomise(nn.Linear(45, 4), seed=7)).double()
    x = image(64, 64, batch=4).double()
    state = {f'backbone.{k}': v for k, v in net.backbone.state_dict().items()}

    def loss(pairs) -> float:
        plan = make_plan(net.backbone.arch, {}, [pairs])
        small = PosteriorNet(build('deit', plan.target_arch, out_indices=(-1,)), net.head).double()
        sliced = slice_state(state, plan)
        small.backbone.load_state_dict({k.removeprefix('backbone.'): v for k, v in sliced.items()})
        with torch.no_grad():
            p, q = log_posteriors(net(x)), log_posteriors(small(x))
        return (p.exp() * (p - q)).sum().item()

    expected = all_blocks(5)
    for depth in (4, 3):
        expected = min((remove(expected, c) for c in removal_candidates(expected)), key=loss)
        chosen = choose_blocks(net, [Batch(x[:3], [0, 1, 2]), Batch(x[3:], [3])], [depth])
        assert chosen == (expected,)


def test_stages_keep_their_depths(build, image, randomise):
    net = PosteriorNet(build('pvtv2', out_indices=(-1,)), randomise(nn.Linear(40, 4)))
    blocks = choose_blocks(net, [Batch(image(64, 64), [0, 1])], [1, 1, 2, 1])
    assert [len(pairs) for pairs in blocks] == [1, 1, 2, 1]
    assert blocks[2] == all_blocks(2)
    for depths in ([1, 3, 2, 1], [0, 2, 2, 1], [1, 2]):
        with pytest.raises(ValueError, match=r'depths = \['):
            choose_blocks(net, [], depths)
