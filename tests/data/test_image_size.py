"""The size of pictures at the end of a pipeline."""

from __future__ import annotations

import pytest

from upvit_mm.data.datasets import transforms_of
from upvit_mm.data.image_size import image_size


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
