"""An average over as many images whatever the batch size."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

IMAGES, WINDOW = 480, 16  # of an epoch; of the average


class Numbers(Dataset):
    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return torch.ones(1)


class Counter(BaseModel):
    """Its only weight is the number of images that it has seen."""

    def __init__(self):
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(1))

    def train_step(self, data, optim_wrapper):
        self.seen.data += len(data)
        return dict(loss=self.seen.detach())

    def forward(self, inputs, mode='tensor'):
        return inputs


@pytest.fixture
def lag(tmp_path):
    """``lag(hook, batch_size, cfg)``: how many images the average is behind at the end."""

    def train(hook: str, batch_size: int, **cfg) -> float:
        runner = Runner(
            Counter(),
            str(tmp_path),
            train_dataloader=dict(
                dataset=Numbers(), batch_size=batch_size, num_workers=0, sampler=dict(type='DefaultSampler')
            ),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            custom_hooks=[dict(type=hook, momentum=1 / WINDOW)],
            default_hooks=dict(checkpoint=None),
            experiment_name=f'{tmp_path.name}_{hook}_{batch_size}',
            log_level='ERROR',
            cfg=Config(cfg),
        )
        runner.train()
        (average,) = [h.ema_model for h in runner.hooks if 'EMAHook' in type(h).__name__]
        return IMAGES - average.module.seen.item()

    return train


def test_the_window_is_counted_in_images(lag):
    """A weight that grows evenly is ``batch * (1 - m) / m`` behind, m the share of a step."""
    scaling = dict(auto_scale_lr=dict(base_batch_size=4))
    at_base = 4 * (WINDOW - 1)
    assert lag('EMAHook', 4, **scaling) == pytest.approx(at_base, abs=0.1)
    assert lag('upvit_mm.ImageEMAHook', 4, **scaling) == pytest.approx(at_base, abs=0.1)
    share = 1 - (1 - 1 / WINDOW) ** 4  # of a step of 16 images
    assert lag('upvit_mm.ImageEMAHook', 16, **scaling) == pytest.approx(16 * (1 - share) / share, abs=0.1)
    assert 16 * (1 - share) / share == pytest.approx(at_base, abs=6)
    assert lag('EMAHook', 16, **scaling) > 3 * at_base
    on = dict(auto_scale_lr=dict(base_batch_size=4, enable=True))
    assert lag('upvit_mm.ImageEMAHook', 1, **on) == pytest.approx(at_base, abs=2)
    assert lag('EMAHook', 1, **on) < at_base / 3


def test_without_a_base_batch_size(lag):
    with pytest.raises(ValueError, match=r'momentum = 0.0625 for steps of auto_scale_lr.base_batch_size images, which'):
        lag('upvit_mm.ImageEMAHook', 4)
