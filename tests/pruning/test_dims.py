"""The declared tables against the state dicts of real networks."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from upvit_mm.arch import ArchSpec, arch_names, get_arch
from upvit_mm.models import build_backbone
from upvit_mm.pruning import KINDS, fixed_axes, prunable_dims


def classifier_shapes(spec: ArchSpec) -> dict[str, torch.Size]:
    with torch.device('meta'):
        backbone = build_backbone(spec)
        head = nn.Linear(spec.embed_dims[-1], 1000)
    state = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    state |= {f'head.fc.{k}': v for k, v in head.state_dict().items()}
    return {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize('name', [*arch_names(), 'tiny'])
def test_every_axis_is_claimed_once_or_fixed(name, family, tiny_arch):
    spec = ArchSpec.from_dict(tiny_arch(family)) if name == 'tiny' else get_arch(name)
    shapes = classifier_shapes(spec)
    axes = {(key, axis) for key, shape in shapes.items() for axis in range(len(shape))}
    dims, fixed = prunable_dims(spec), {slot[:2] for slot in fixed_axes(spec)}
    claims = Counter(slot[:2] for dim in dims.values() for slot in dim.slots)
    # q, k and v weights are claimed on both axes, but by different dims: each axis once
    assert max(claims.values()) == 1
    assert not set(claims) & fixed
    assert set(claims) | fixed == axes
    for dim in dims.values():
        for slot in dim.slots:
            assert shapes[slot.tensor][slot.axis] == slot.length(dim.size, dim.groups)
        assert dim.size % dim.groups == 0


def test_names_and_order(tiny_arch):
    dims = prunable_dims(ArchSpec.from_dict(tiny_arch('pvtv2')))
    assert list(dims)[:5] == [
        'stages.0.embed',
        'stages.0.blocks.0.qk',
        'stages.0.blocks.0.v',
        'stages.0.blocks.0.mlp_hidden',
        'stages.1.embed',
    ]
    assert {dim.kind for dim in dims.values()} == set(KINDS)
    dim = dims['stages.1.blocks.1.qk']
    assert (dim.kind, dim.stage, dim.block, dim.size, dim.groups) == ('qk', 1, 1, 15, 3)
    assert dims['stages.2.embed'].block is None
