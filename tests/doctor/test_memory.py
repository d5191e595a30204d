"""The estimate of memory: what is counted, and how far it is from a real step."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import nn

from upvit_mm.data.datasets import transforms_of
from upvit_mm.doctor import memory
from upvit_mm.doctor.memory import LiveBytes, estimate, peak_bytes
from upvit_mm.doctor.subject import image_size

FLOAT = 4  # bytes


def test_live_bytes():
    weight = torch.ones(1000)
    with LiveBytes() as live:
        doubled = weight * 2
        assert live.now == 1000 * FLOAT  # the weight was there before
        view = doubled.view(10, 100)
        view[0].add_(1)
        assert live.now == 1000 * FLOAT
        weight.t().add_(1)
        assert live.now == 1000 * FLOAT
        more = torch.cat([doubled, doubled])
        assert live.now == 3000 * FLOAT
        del doubled
        assert live.now == 3000 * FLOAT  # the view holds it
        del view, more
        assert live.now == 0
    assert live.peak == 3000 * FLOAT


def test_what_a_forward_pass_keeps_for_the_backward_pass():
    net = nn.Sequential(nn.Linear(100, 50), nn.GELU(), nn.Linear(50, 30), nn.GELU())
    x = torch.ones(7, 100)
    with LiveBytes() as live:
        loss = net(x).sum()
    assert live.now == (7 * (50 + 50 + 30) + 1) * FLOAT  # the last GELU's result is summed and let go
    assert live.peak == (7 * (50 + 50 + 30 + 30) + 1) * FLOAT
    with LiveBytes() as live, torch.no_grad():
        net(x)
    assert live.peak == 7 * (50 + 50) * FLOAT
    assert loss.requires_grad


def most_allocated(work) -> int:
    """The most bytes that torch's allocator holds beyond what it held before."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


@pytest.mark.filterwarnings('ignore:Warning. Profiler clears events')
@pytest.mark.parametrize('name', ['mask-rcnn', 'deit'])
def test_against_the_allocator(name, subject):
    config = subject(name)
    size = (256, 256) if name == 'mask-rcnn' else (64, 64)
    counted = peak_bytes(config, size, 'loss')
    net, batch = config.model.train(), config.random_batch(*size)

    def forward():
        return net.parse_losses(net(**net.data_preprocessor(batch, True), mode='loss'))[0]

    assert counted == pytest.approx(most_allocated(forward), rel=0.02)
    whole = most_allocated(lambda: forward().backward())
    gradients = sum(parameter.grad.nbytes for parameter in net.parameters() if parameter.grad is not None)
    assert 0.98 * counted < whole < 1.02 * (counted + gradients)


def test_a_line_through_small_images_reaches_a_large_one(subject, monkeypatch):
    config = subject('retinanet')
    measured = peak_bytes(config, (384, 448), 'loss')
    monkeypatch.setattr(memory, 'SIZES', ((192, 192), (192, 288)))
    assert memory._at_size(config, (384, 448), 'loss') == pytest.approx(measured, rel=0.03)
    monkeypatch.setattr(memory, 'SIZES', ((384, 448), (384, 448)))
    assert memory._at_size(config, (384, 448), 'loss') == pytest.approx(measured, rel=0.001)


def test_estimate(subject):
    config = subject('deit', batch_size=32)
    needs = estimate(config, (64, 64))
    numbers = sum(parameter.numel() for parameter in config.model.parameters())
    assert needs.gradients == numbers * FLOAT
    assert needs.weights == (numbers + 2 * 3) * FLOAT  # mean and std of the preprocessing
    assert needs.states == pytest.approx(2 * numbers * FLOAT, rel=0.01)  # and a step counter for each tensor
    assert (needs.size, needs.batch) == ((64, 64), 32)
    assert needs.training == needs.weights + needs.gradients + needs.states + 32 * needs.image
    assert 0 < needs.inference < needs.image / 3
    assert all(parameter.grad is None for parameter in config.model.parameters())

    frozen = estimate(subject('deit', 'model.backbone.frozen_stages=6'), (64, 64))
    assert frozen.weights == needs.weights
    assert frozen.gradients == (96 * 10 + 10) * FLOAT  # of the head
    assert frozen.image < needs.image / 3
    recomputed = estimate(subject('deit', 'model.backbone.with_cp=True'), (64, 64))
    assert recomputed.image < needs.image / 2


def test_padding(subject):
    assert estimate(subject('mask-rcnn'), (120, 130)).size == (128, 160)


# ----------------------------------------------------------------- image sizes


@pytest.mark.parametrize(
    ('pipeline', 'size'),
    [
        ([dict(type='Resize', scale=(1333, 800), keep_ratio=True), dict(type='RandomFlip', prob=0.5)], (800, 1333)),
        ([dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True)], (800, 1333)),
        ([dict(type='RandomChoiceResize', scales=[480, 800, 512])], (800, 800)),
        ([dict(type='ResizeEdge', scale=256, edge='short'), dict(type='CenterCrop', crop_size=224)], (224, 224)),
        ([dict(type='RandomResize', scale=(2048, 2048)), dict(type='RandomCrop', crop_size=(1024, 768))], (768, 1024)),
        (
            [
                dict(
                    type='RandomChoice',
                    transforms=[
                        [dict(type='RandomChoiceResize', scales=[(480, 1333), (800, 1333)])],
                        [dict(type='RandomChoiceResize', scales=[(400, 4200)]), dict(type='Resize', scale=(640, 480))],
                    ],
                )
            ],
            (480, 640),
        ),
        ([dict(type='Pad', size_divisor=32), dict(type='PackDetInputs')], None),
        (None, None),
    ],
)
def test_image_sizes(pipeline, size):
    assert image_size([dict(pipeline=pipeline)]) == size
    assert image_size([dict(pipeline=pipeline), dict(pipeline=[dict(type='Resize', scale=32)])]) == (32, 32)


def test_transforms_inside_others():
    inner = [dict(type='A'), dict(type='B', transforms=[[dict(type='C')], dict(type='D')])]
    assert [transform['type'] for transform in transforms_of(inner)] == ['A', 'B', 'C', 'D']
