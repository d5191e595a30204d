import pytest
import torch
import torch.nn.functional as F
from torch import nn

from upvit_mm.models import SimpleFeaturePyramid


@pytest.mark.parametrize(
    ('start_level', 'num_outs', 'strides'),
    [(0, 4, (4, 8, 16, 32)), (0, 5, (4, 8, 16, 32, 64)), (1, 5, (8, 16, 32, 64, 128)), (2, 1, (16,)), (0, 1, (4,))],
)
@pytest.mark.parametrize(('height', 'width'), [(4, 4), (5, 3), (1, 7)])
def test_levels_lie_at_their_strides(randomise, start_level, num_outs, strides, height, width):
    neck = randomise(SimpleFeaturePyramid(22, 13, num_outs, start_level))
    outs = neck([torch.randn(2, 22, height, width)])
    grids = [tuple(-(-n * 16 // s) for n in (height, width)) for s in strides]
    assert [tuple(o.shape) for o in outs] == [(2, 13, *grid) for grid in grids]
    assert all(torch.isfinite(o).all() for o in outs)


def test_norm_is_over_channels(randomise):
    """Each place of each map has zero mean and unit variance under the affine part of the last norm."""
    neck = randomise(SimpleFeaturePyramid(16, 24, 5))
    for level, out in zip(neck.levels, neck([torch.randn(1, 16, 4, 6)])):
        plain = (out - level[-1].bias[:, None, None]) / level[-1].weight[:, None, None]
        assert plain.mean(dim=1).abs().max() < 1e-4
        assert (plain.var(dim=1, unbiased=False) - 1).abs().max() < 1e-2


def test_stride_4_equals_the_formula(randomise, distance):
    (level,) = randomise(SimpleFeaturePyramid(12, 8, 1).double()).levels
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    up1, norm1, _, up2, conv1, norm2, conv2, norm3 = level

    def normed(x, norm):
        return F.layer_norm(x.movedim(1, 3), x.shape[1:2], norm.weight, norm.bias, eps=1e-6).movedim(3, 1)

    y = F.gelu(normed(F.conv_transpose2d(x, up1.weight, up1.bias, stride=2), norm1))  # (2, 6, 6, 10)
    y = F.conv_transpose2d(y, up2.weight, up2.bias, stride=2)  # (2, 3, 12, 20)
    y = normed(F.conv2d(y, conv1.weight), norm2)
    assert distance(level(x), normed(F.conv2d(y, conv2.weight, padding=1), norm3)) < 1e-13


def test_every_parameter_gets_a_gradient(randomise):
    neck = randomise(SimpleFeaturePyramid(16, 8, 5))
    outs = neck([torch.randn(1, 16, 6, 4)])
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in neck.parameters())


def test_coarse_levels_are_maxima_of_the_map():
    neck = SimpleFeaturePyramid(8, 8, 3, start_level=2)
    pools = [[m for m in level if isinstance(m, nn.MaxPool2d)] for level in neck.levels]
    assert [len(p) for p in pools] == [0, 1, 2]
    x = torch.randn(1, 8, 5, 3)
    assert torch.equal(nn.Sequential(*pools[2])(x)[..., 0, 0], x[..., :4, :].amax(dim=(2, 3)))


def test_list_of_one_width_will_do():
    assert SimpleFeaturePyramid([12], 4, 1).levels[0][0].in_channels == 12


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(in_channels=[16, 32]), r'in_channels = \[16, 32\]: .* one input map; give a pyramid backbone an FPN'),
        (dict(in_channels=16, num_outs=7), r'start_level = 0, num_outs = 7: levels are strides 4 to 128'),
        (dict(in_channels=16, num_outs=0), r'num_outs = 0: '),
        (dict(in_channels=16, start_level=3), r'start_level = 3, num_outs = 5'),
        (dict(in_channels=16, start_level=2, num_outs=5), r'start_level = 2, num_outs = 5'),
    ],
)
def test_wrong_setting_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid(**settings)


def test_several_maps_are_a_fault():
    with pytest.raises(AssertionError, match='returned 2 maps'):
        SimpleFeaturePyramid(8)([torch.ones(1, 8, 2, 2)] * 2)
