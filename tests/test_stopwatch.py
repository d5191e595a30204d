"""The side-by-side benchmark: same networks, sane figures. Nothing here depends on how fast a machine is."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.benchmark.backbone import compare_backbones
from upvit_mm.benchmark.rivals import build_backbones, rivals_of
from upvit_mm.stopwatch import (
    Timing,
    forward_step,
    in_fresh_process,
    peak_memory,
    process_peak,
    seconds,
    time_alternating,
    training_step,
)


@pytest.mark.parametrize('family', ['deit', 'pvtv2'])
def test_rivals_compute_the_same_maps(family, stock_arch, image, distance):
    models = build_backbones(ArchSpec.from_dict(stock_arch(family)), rivals_of(family))
    assert list(models) == {'deit': ['ours', 'timm'], 'pvtv2': ['ours', 'timm', 'mmdet']}[family]
    with torch.no_grad():
        maps = {name: list(model(image(64, 64))) for name, model in models.items()}
    for name, tolerance in (('timm', 1e-5), ('mmdet', 2e-2)):  # mmdet's LayerNorm eps is another
        for ours, theirs in zip(maps['ours'], maps.get(name, [])):
            assert distance(theirs, ours) < tolerance


def test_pruned_widths_have_no_rival(tiny_arch, stock_arch):
    with pytest.raises(ValueError, match="arch 'tiny-pvtv2': stage 0 has pruned widths"):
        build_backbones(ArchSpec.from_dict(tiny_arch('pvtv2')), ['timm'])
    scaled = ArchSpec.from_dict(stock_arch('deit', qk_scales=0.5))
    with pytest.raises(ValueError, match='which timm cannot build'):
        build_backbones(scaled, ['timm'])
    with pytest.raises(ValueError, match="against = 'mmdet': has no deit backbone; known for it: timm"):
        build_backbones(get_arch('deit-tiny'), ['mmdet'])


def test_runs_alternate_and_warm_up():
    seen = []

    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            seen.append(self.name)
            return [x]

    models = {'a': Named('a'), 'b': Named('b')}
    timings = time_alternating(models, forward_step, torch.zeros(1), repeats=4)
    assert [timings[name].runs for name in 'ab'] == [4, 4]
    assert len(seen) == 2 * (4 + 2)
    assert all(set(seen[i : i + 2]) == {'a', 'b'} for i in range(0, 12, 2))
    assert seen[:2] != seen[2:4]  # who goes first changes
    with pytest.raises(ValueError, match='repeats = 1'):
        time_alternating(models, forward_step, torch.zeros(1), repeats=1)


def test_timing_is_median_and_quartiles():
    assert Timing.of([4.0, 1.0, 2.0, 3.0, 100.0]) == Timing(median=3.0, low=2.0, high=4.0, runs=5)


def test_training_step_leaves_no_gradients(build, image):
    model = build('pvtv2')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    training_step(model, image(64, 64))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Allocates(nn.Module):
    def forward(self, x):
        return [torch.ones(64, 2**20)]  # 256 MiB


def peak_of_allocates() -> int:
    return peak_memory(Allocates(), forward_step, torch.zeros(1))


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_peak_memory_sees_what_a_step_allocates():
    assert 240 * 2**20 < in_fresh_process(peak_of_allocates) < 300 * 2**20


def small_pieces(*_: object) -> list[torch.Tensor]:
    """40 MiB in pieces that the allocator keeps when they are freed."""
    return [torch.ones(2**14) for _ in range(640)]


def peak_after_loading() -> int:
    last = small_pieces()[-1]  # holds the end of the heap, and what was freed below it stays
    return peak_memory(nn.Identity(), small_pieces, last)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_that_was_freed_before_hides_nothing():
    assert 35 * 2**20 < in_fresh_process(peak_after_loading) < 50 * 2**20


def test_whole_comparison(stock_arch):
    sizes = {'forward': (64, 64), 'training': (64, 96)}
    results = compare_backbones(ArchSpec.from_dict(stock_arch('pvtv2')), ['timm'], sizes, repeats=2)
    assert json.loads(json.dumps(results)) == results
    assert results['training']['size'] == [64, 96]
    for kind in sizes:
        assert results[kind]['timm']['seconds']['runs'] == 2
        assert results[kind]['timm']['peak_bytes'] >= 0


def test_seconds_are_those_of_the_clock():
    ticks = iter([10.0, 12.5])
    assert seconds(lambda: None, lambda: next(ticks)) == 2.5


def test_the_peak_of_the_process_only_grows():
    before = process_peak('cpu')
    held = torch.ones(2**26)  # 256 MiB
    assert process_peak('cpu') >= max(before, held.nbytes)
