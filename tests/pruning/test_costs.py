"""Counts against published figures, the built network and an independent counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.arch.size import Windows
from upvit_mm.models import UPDeiT, build_backbone
from upvit_mm.models.network import macs_of
from upvit_mm.pruning.costs import count_macs, count_params, mac_terms, param_terms, total, widths_of

SIZES = [(64, 64), (96, 160), (101, 75)]


@pytest.mark.parametrize(
    ('name', 'macs', 'params'),
    [  # at 224x224, with a head of 1000 classes: DeiT's table 1 and timm; PVTv2's table 2
        ('deit-tiny', 1.25e9, 5.72e6),
        ('deit-small', 4.60e9, 22.05e6),
        ('deit-base', 17.56e9, 86.57e6),
        ('pvtv2-b0', 0.57e9, 3.67e6),
        ('pvtv2-b1', 2.11e9, 14.01e6),
        ('pvtv2-b2', 4.03e9, 25.36e6),
    ],
)
def test_published_figures(name, macs, params):
    assert count_macs(get_arch(name), num_classes=1000) == pytest.approx(macs, rel=0.01)
    assert count_params(get_arch(name), num_classes=1000) == pytest.approx(params, rel=0.001)


def test_parameters_are_those_of_the_built_network(family, build):
    backbone = build(family)
    assert count_params(backbone.arch) == sum(p.numel() for p in backbone.parameters())
    head = backbone.arch.embed_dims[-1] * 7 + 7
    assert count_params(backbone.arch, 7) == count_params(backbone.arch) + head


def counted(backbone, size) -> int:
    """Without weights, so that resizing positions does not count, which is done by matrix products."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        backbone.to('meta')(torch.empty(1, 3, *size, device='meta'))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize('size', SIZES)
def test_macs_are_those_of_an_independent_counter(family, stock_arch, size):
    arch = ArchSpec.from_dict(stock_arch(family))
    backbone = build_backbone(arch).eval()
    assert count_macs(arch, size) == counted(backbone, size)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('window', [2, 3])
def test_macs_of_windowed_attention(stock_arch, size, window):
    arch = ArchSpec.from_dict(stock_arch('deit', depths=[6]))
    backbone = UPDeiT(arch, window_size=window).eval()
    assert count_macs(arch, size, windows=Windows(window)) == counted(backbone, size)
    some = UPDeiT(arch, window_size=window, global_blocks=(1, -1)).eval()
    assert count_macs(arch, size, windows=Windows(window, (1, -1))) == counted(some, size)


@pytest.mark.parametrize(
    ('kind', 'settings', 'used'), [('pvtv2', (0, 1), [1, 1, 0, 0]), ('deit', (0, 2), [3]), ('dinov2', (1,), [2])]
)
def test_macs_of_what_runs(stock_arch, kind, settings, used):
    """What comes after the last output never runs."""
    arch = ArchSpec.from_dict(stock_arch(kind, depths=[1, 1, 2, 1] if kind == 'pvtv2' else [4]))
    backbone = build_backbone(arch, out_indices=settings).eval()
    assert list(backbone.blocks_in_use()) == used
    assert macs_of(backbone, (64, 96)) == count_macs(arch, (64, 96), used=used) == counted(backbone, (64, 96))
    assert count_macs(arch, (64, 96)) > count_macs(arch, (64, 96), used=used)


def test_terms_name_modules_of_the_backbone_and_every_dim(family, build):
    backbone = build(family)
    modules = {name for name, _ in backbone.named_modules()} | {'cls_token', 'reg_token', 'pos_embed', 'head'}
    for terms in (mac_terms(backbone.arch, (64, 64), 3), param_terms(backbone.arch, 3)):
        assert {term.module for term in terms} <= modules
        assert {name for term in terms for name in term.dims} == set(widths_of(backbone.arch))
        assert total(terms, dict.fromkeys(widths_of(backbone.arch), 0)) in (0, 3)  # the bias of the head


def test_bad_input():
    with pytest.raises(ValueError, match=r'size = 16x224: both sides need 32 pixels'):
        count_macs(get_arch('pvtv2-b0'), (16, 224))
    with pytest.raises(ValueError, match='window_size = 7: pvtv2 has spatial reduction'):
        count_macs(get_arch('pvtv2-b0'), windows=Windows(7))
