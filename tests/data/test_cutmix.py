"""The authors' CutMix: how much of an image is left, and that labels say so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from upvit_mm.data.cutmix import UPCutMix

TYPE = 'upvit_mm.data.cutmix.UPCutMix'


def mixed(augment, seed: int, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Four images, each of one value, and their labels after mixing."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, side, side).clone()
    return augment(images, torch.eye(4))


@pytest.mark.parametrize('alpha', [0.2, 0.5, 1.0])
def test_labels_are_the_shares_of_pixels(alpha):
    augment, weights = UPCutMix(alpha), []
    for seed in range(200):
        images, labels = mixed(augment, seed)
        for k in range(4):
            shares = [(images[k, 0] == value).float().mean().item() for value in range(4)]
            assert labels[k].tolist() == pytest.approx(shares, abs=1e-6)
            weights.append(labels[k, k].item())
    assert min(weights) >= 0.5
    assert min(weights) < 0.65  # not far from it either


def test_the_share_is_the_larger_one(monkeypatch):
    """Its mean over Beta(0.5, 0.5) is 1/2 + 1/pi, where a share as it is drawn gives 1/2."""
    drawn, used = [], []
    parent = UPCutMix.__mro__[1]
    whole = parent.cutmix_bbox_and_lam
    monkeypatch.setattr(
        parent,
        'cutmix_bbox_and_lam',
        lambda self, shape, lam, count=None: (used.append(lam), whole(self, shape, lam))[1],
    )
    augment, beta = UPCutMix(0.5), np.random.beta
    monkeypatch.setattr(np.random, 'beta', lambda a, b: (drawn.append(beta(a, b)), drawn[-1])[1])
    np.random.seed(0)
    images, labels = torch.zeros(2, 3, 8, 8), torch.eye(2)
    for _ in range(5000):
        augment(images, labels)
    assert used == [max(share, 1 - share) for share in drawn]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.02)
    assert np.mean(used) == pytest.approx(0.5 + 1 / math.pi, abs=0.01)


def test_a_config_builds_it_by_its_name(run_forked):
    """In a process that has imported nothing of this package yet."""
    code = f"""
from mmengine.registry import init_default_scope
from mmpretrain.models import RandomBatchAugment
init_default_scope('mmpretrain')
augment = RandomBatchAugment(dict(type={TYPE!r}, alpha=0.5)).augments[0]
print(type(augment).__name__, augment.alpha, augment.correct_lam)
"""
    assert run_forked(code).splitlines()[-1] == 'UPCutMix 0.5 True'
