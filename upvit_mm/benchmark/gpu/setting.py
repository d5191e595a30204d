"""What a report measures: the full one for a GPU, and a small one that runs through on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upvit_mm.arch.size import Size

Arch = str | Mapping[str, Any]
TINY = {
    'pvtv2': dict(
        family='pvtv2',
        name='tiny-pvtv2',
        embed_dims=[16, 32, 80, 128],
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 5, 8],
        mlp_hidden_dims=[32, 64, 160, 256],
        sr_ratios=[8, 4, 2, 1],
        img_size=64,
    ),
    'deit': dict(
        family='deit', name='tiny-deit', embed_dims=[32], depths=[2], num_heads=2, mlp_hidden_dims=64, img_size=64
    ),
}


@dataclass(frozen=True)
class Setting:
    """Networks, sizes and numbers of a report.

    Attributes:
        name: in the report.
        pyramids: PVTv2 networks: stock names, or mappings.
        plain: a DeiT in the same form, measured with global attention and with windows.
        window: side of its windows in tokens.
        size: ``(height, width)`` of the images in pixels.
        forward_batches: images in a forward pass.
        training_batch: images in a training step of a backbone.
        repeats: timed runs of each network.
        backend: of ``torch.compile``.
        compiled: what is timed compiled, of ``'forward'`` and ``'training'``.
        scored: networks whose scoring is timed.
        scored_images: images in a batch of scoring.
        candidates: channels of each dim whose exact score is timed.
        detectors: configs in ``configs/`` and images in a step.
        round_to: widths of the networks with half the multiply-accumulates are multiples of it.
        tests: arguments of pytest.
    """

    name: str
    pyramids: tuple[Arch, ...]
    plain: Arch
    window: int
    size: Size
    forward_batches: tuple[int, ...]
    training_batch: int
    repeats: int
    backend: str
    compiled: tuple[str, ...]
    scored: tuple[Arch, ...]
    scored_images: int
    candidates: int
    detectors: tuple[tuple[str, int], ...]
    round_to: int
    tests: tuple[str, ...]


FULL = Setting(
    name='full',
    pyramids=('pvtv2-b0', 'pvtv2-b2'),
    plain='deit-small',
    window=14,
    size=(800, 1344),
    forward_batches=(8, 1),
    training_batch=4,
    repeats=10,
    backend='inductor',
    compiled=('forward', 'training'),
    scored=('deit-base', 'pvtv2-b2'),
    scored_images=64,
    candidates=4,
    detectors=(  # the most important first: time may run out
        ('detection/retinanet_up-pvtv2-b0_fpn_1x_coco.py', 16),
        ('detection/mask-rcnn_up-pvtv2-b0_fpn_1x_coco.py', 8),
        ('detection/retinanet_up-pvtv2-b2_fpn_1x_coco.py', 8),
        ('detection/retinanet_up-deit-small_sfp_1x_coco.py', 8),
        ('detection/mask-rcnn_up-pvtv2-b2_fpn_1x_coco.py', 8),
        ('detection/mask-rcnn_up-deit-small_sfp_1x_coco.py', 4),
    ),
    round_to=8,
    tests=('--device', 'cuda', '-m', 'gpu', 'tests'),
)
SMALL = Setting(
    name='small',
    pyramids=(TINY['pvtv2'],),
    plain=TINY['deit'],
    window=2,
    size=(64, 64),
    forward_batches=(2,),
    training_batch=1,
    repeats=2,
    backend='eager',
    compiled=('forward',),
    scored=(TINY['deit'],),
    scored_images=2,
    candidates=1,
    detectors=(
        ('demo/retinanet_up-pvtv2-micro_fpn_digits.py', 1),
        ('demo/mask-rcnn_up-deit-micro_sfp_digits.py', 1),
    ),
    round_to=1,
    tests=('tests/test_table.py',),
)
SETTINGS = {setting.name: setting for setting in (FULL, SMALL)}
