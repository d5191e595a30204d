"""The distance of a pruned detector's maps from those of the dense one."""

from __future__ import annotations

import pytest
import torch

from upvit_mm.models.losses import map_distance


def maps(*sides, channels=3, batch=2, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(batch, channels, side, side, generator=generator) for side in sides)


def test_a_reference():
    ours, theirs = maps(4, 2, seed=1), maps(4, 2, scale=5.0)
    total = 0.0
    for a, b in zip(ours, theirs):
        b_mean = b.sum() / b.numel()
        variance = ((b - b_mean) ** 2).sum() / (b.numel() - 1)
        total += (((a - b) ** 2).sum() / b.numel() / variance).item()
    assert map_distance(ours, theirs).item() == pytest.approx(total / 2, rel=1e-6)


def test_known_values():
    theirs = maps(8, 4, scale=100.0)
    assert map_distance(theirs, theirs) == 0
    flat = [torch.full_like(m, m.mean().item()) for m in theirs]
    counts = [m.numel() for m in theirs]  # of the unbiased variance
    assert map_distance(flat, theirs).item() == pytest.approx(sum((n - 1) / n for n in counts) / 2, rel=1e-5)


def test_the_scale_of_a_map_does_not_matter():
    ours, theirs = maps(4, 2, seed=1), maps(4, 2)
    scaled = [(7 * a, 7 * b) if k else (a, b) for k, (a, b) in enumerate(zip(ours, theirs))]
    assert map_distance(*zip(*scaled)).item() == pytest.approx(map_distance(ours, theirs).item(), rel=1e-5)


def test_half_precision_keeps_small_differences():
    theirs = maps(8)[0].half()
    ours = (theirs.float() + 1e-3).requires_grad_()
    found = map_distance([ours.half()], [theirs])
    assert found.dtype == torch.float32
    wanted = (ours.half().float() - theirs.float()).square().mean() / theirs.float().var()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert map_distance(theirs.double(), theirs.double()).dtype == torch.float64


def test_only_the_pruned_maps_get_gradients():
    ours, theirs = maps(4, seed=1)[0].requires_grad_(), maps(4)[0]
    map_distance([ours], [theirs]).backward()
    torch.testing.assert_close(ours.grad, 2 * (ours.detach() - theirs) / theirs.numel() / theirs.var())


@pytest.mark.parametrize(
    ('ours', 'theirs', 'words'),
    [
        (maps(4, channels=2), maps(4), 'of 2x4x4, and in the dense detector of 3x4x4: they must be the same'),
        (maps(4, 2), maps(4), 'of 3x4x4, 3x2x2, and in the dense detector of 3x4x4: they must'),
        (maps(2), maps(4), 'of 3x2x2, and in the dense detector of 3x4x4.*Without a neck only attention'),
    ],
)
def test_other_maps(ours, theirs, words):
    with pytest.raises(ValueError, match=rf'the heads read maps \(channels, height, width\) {words}'):
        map_distance(ours, theirs)
