"""The kernels of the depth-wise convolution, run by Triton's interpreter and built for a GPU that is not here."""

from __future__ import annotations

import pytest

from upvit_mm.models.layers import depthwise

# small blocks, so that small maps have several programs and borders between them
START = """
import os
os.environ['TRITON_INTERPRET'] = '1'  # before Triton is imported
import torch
from torch import nn
from upvit_mm.models.layers import depthwise, depthwise_kernels as kernels
from upvit_mm.models.layers.fast_paths import plain_paths
from upvit_mm.models.layers.mlp import Mlp
kernels.COLUMNS, kernels.CHANNELS, kernels.FORWARD_ROWS, kernels.BACKWARD_ROWS = 4, 8, 4, 4
torch.manual_seed(0)

def network(channels):
    mlp = Mlp(6, channels, dwconv=True)
    nn.init.normal_(mlp.dwconv.weight)
    nn.init.normal_(mlp.dwconv.bias)
    return mlp

def results(mlp, x, grid, weights):
    x = x.clone().requires_grad_()
    out = mlp(x, grid)
    return [out, *torch.autograd.grad((out.float() * weights).sum(), [x, *mlp.parameters()])]

def distance(actual, expected):
    return max(((a - e).abs().max() / e.abs().max()).item() for a, e in zip(actual, expected))
"""
PARITY = """
for batch, height, width, channels in [(2, 5, 3, 9), (1, 1, 6, 3), (1, 3, 1, 8)]:
    mlp, x = network(channels), torch.randn(batch, height * width, 6)
    weights = torch.randn_like(x)
    with plain_paths():
        assert not depthwise.runs_fused(x, mlp.dwconv, mlp.act)
        plain = results(mlp, x, (height, width), weights)
    assert depthwise.runs_fused(x, mlp.dwconv, mlp.act)
    print(distance(results(mlp, x, (height, width), weights), plain))
"""
HALF = """
mlp, x = network(3), torch.randn(1, 2 * 4, 6)
weights = torch.randn_like(x)
with plain_paths():
    plain = results(mlp, x, (2, 4), weights)
with torch.autocast('cpu', torch.float16):
    out = results(mlp, x, (2, 4), weights)
print(distance(out, plain), *{str(t.dtype) for t in out[1:]}, out[0].dtype)
"""
# torch's own check: the schema, the shapes without numbers, gradients, and compilation for sizes that change
CHECKED = """
conv, x = network(3).dwconv, torch.randn(1, 2 * 3, 3, requires_grad=True)
torch.library.opcheck(torch.ops.upvit_mm.depthwise_gelu.default, (x, conv.weight, conv.bias, 2, 3))
from torch.utils.flop_counter import FlopCounterMode
with torch.no_grad(), FlopCounterMode(display=False) as counter:
    depthwise.depthwise_gelu(x, conv, (2, 3))
print(counter.get_total_flops())
"""


@pytest.fixture(scope='module')
def printed(run_python) -> list[list[str]]:
    """Words of each line that the three parts print; one process, because its imports take most of the time."""
    if depthwise.kernels is None:
        pytest.skip('this torch brings no Triton')
    return [line.split() for line in run_python(START + PARITY + HALF + CHECKED).splitlines()]


def test_kernels_equal_three_operations(printed):
    """A border between two programs on each axis, one row, one column, blocks that are not full; all gradients."""
    assert max(float(distance) for (distance,) in printed[:3]) < 1e-5


def test_half_precision_keeps_the_dtypes_of_autocast(printed):
    distance, gradients, out = printed[3]
    assert float(distance) < 3e-3
    assert (gradients, out) == ('torch.float32', 'torch.float16')


def test_the_checks_of_torch_pass_and_its_counter_knows_the_kernel(printed):
    assert [int(word) for word in printed[4]] == [2 * 9 * 18]  # 18 values of 9 multiply-accumulates
