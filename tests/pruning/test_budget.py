"""Budgets, read or refused; ``test_spending.py`` has what becomes of them."""

from __future__ import annotations

import pytest

from upvit_mm.pruning.budget import Budget


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('macs=50%@800x1333', Budget('macs', 0.5, True, (800, 1333))),
        ('macs=1.2G', Budget('macs', 1.2e9, False, None)),
        ('MACs=300m@64x96', Budget('macs', 3e8, False, (64, 96))),
        ('macs=50%@256', Budget('macs', 0.5, True, (256, 256))),
        ('params=3.7M', Budget('params', 3.7e6)),
        ('params=40%', Budget('params', 0.4, True)),
        ('params=1234', Budget('params', 1234)),
        ('latency=60%@800x1344', Budget('latency', 0.6, True, (800, 1344))),
        ('latency=60%', Budget('latency', 0.6, True)),
    ],
)
def test_parse(text, expected):
    assert Budget.parse(text) == expected
    assert Budget.parse(str(expected)) == expected


@pytest.mark.parametrize(
    'text', ['macs', 'flops=1G', 'macs=-1', 'params=3M@224x224', 'macs=1T', '', 'latency=60', 'latency=9M']
)
def test_parse_refuses_other_forms(text):
    with pytest.raises(ValueError, match=r'must look like macs=50%@800x1333'):
        Budget.parse(text)


@pytest.mark.parametrize(
    ('text', 'share'),
    [('macs=50', 'macs=50%'), ('macs=12.5@256', 'macs=12.5%@256'), ('params=100', 'params=100%')],
)
def test_parse_asks_whether_a_share_is_meant(text, share):
    with pytest.raises(ValueError, match=f'budget = {text!r}: no network is that small; .* % is written {share}\\.$'):
        Budget.parse(text)


@pytest.mark.parametrize('size', ['x800', '800x', '0x5', '8x8x8'])
def test_parse_refuses_what_is_no_size(size):
    with pytest.raises(ValueError, match=rf"size '{size}': must be SIDE or HEIGHTxWIDTH"):
        Budget.parse(f'macs=50%@{size}')


@pytest.mark.parametrize('text', ['macs=0', 'params=0%', 'macs=101%'])
def test_parse_refuses_impossible_amounts(text):
    with pytest.raises(ValueError, match='must be above 0, and a share at most'):
        Budget.parse(text)
