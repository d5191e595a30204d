"""Triton kernels of a depth-wise 3x3 convolution with bias and GELU on channel-last tokens (shape legend:
``layers/__init__.py``).

A program computes ``COLUMNS`` columns and ``CHANNELS`` channels of a run of rows. It walks down the rows and keeps the
three that a convolution needs, so that each row is loaded once, and twice where two runs meet. Sums are kept in
float32, whatever the tokens are.

This module needs Triton. With ``TRITON_INTERPRET=1`` it runs on a CPU, for tests. (No ``from __future__ import
annotations`` here: the interpreter of Triton 3.0 does not read annotations that are text.)
"""

# ruff: noqa: N803  (constants of kernels are upper-case, as everywhere in Triton)
import contextlib
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, CHANNELS = 8, 64  # of a program
FORWARD_ROWS, BACKWARD_ROWS = 8, 32  # more in the backward pass, because each program leaves sums of its own
SIZES = ('height', 'width', 'runs')  # of many values: one kernel serves all
SUMS = 10  # of a channel in the backward pass: nine weights and the bias


def forward(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    """``gelu(convolution + bias)``; tokens ``(B, H*W, F)``, all tensors contiguous."""
    return _convolve(x, weight, bias, height, width, gelu=True, flip=False)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens, weight and bias, in their dtypes; the convolution is computed again, not kept."""
    batch, _, channels = x.shape
    inner = torch.empty_like(x)  # the gradient before the GELU
    strips = batch * triton.cdiv(height, BACKWARD_ROWS) * triton.cdiv(width, COLUMNS)
    sums = x.new_empty(strips, SUMS, channels, dtype=torch.float32)
    with _device_of(x):
        _backward[strips, triton.cdiv(channels, CHANNELS)](
            grad, x, weight, bias, inner, sums, height, width, *_blocks(channels, BACKWARD_ROWS)
        )
    sums = sums.sum(dim=0)  # (10, F)
    grad_x = _convolve(inner, weight, bias, height, width, gelu=False, flip=True)
    return grad_x, sums[:9].t().reshape(weight.shape).to(weight.dtype), sums[9].clone().to(bias.dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, gelu: bool, flip: bool) -> Tensor:
    batch, _, channels = x.shape
    out = torch.empty_like(x)
    strips = batch * triton.cdiv(height, FORWARD_ROWS) * triton.cdiv(width, COLUMNS)
    blocks = _blocks(channels, FORWARD_ROWS)
    with _device_of(x):
        _forward[strips, triton.cdiv(channels, CHANNELS)](x, weight, bias, out, height, width, *blocks, gelu, flip)
    return out


def _blocks(channels: int, rows: int) -> tuple[int, ...]:
    """Runs of channels and the kernels' constants; from the run the compiler knows how much it may load at once."""
    run = math.gcd(channels, 16)
    return channels // run, run, rows, COLUMNS, CHANNELS


def _device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@triton.jit(do_not_specialize=SIZES)
def _forward(
    tokens,
    weight,
    bias,
    out,
    height,
    width,
    runs,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GELU: tl.constexpr,  # False: neither bias nor GELU
    FLIP: tl.constexpr,  # the weights turned by half a circle, for the gradient of the input
):
    channels = runs * RUN
    image, top, left = _place(height, width, channels, ROWS, COLUMNS)
    x = left + tl.arange(0, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = _taps(weight, c, channels, FLIP)
    shift = _of_channel(bias, c, channels, 1)
    a0, a1, a2 = _row(tokens + image, top - 1, x, c, height, width, channels)
    b0, b1, b2 = _row(tokens + image, top, x, c, height, width, channels)
    for r in tl.static_range(ROWS):
        y = top + r
        c0, c1, c2 = _row(tokens + image, y + 1, x, c, height, width, channels)
        z = a0 * w0 + a1 * w1 + a2 * w2 + b0 * w3 + b1 * w4 + b2 * w5 + c0 * w6 + c1 * w7 + c2 * w8
        if GELU:
            z = z + shift
            z = z * _normal(z)
        at = (y * width + x)[:, None] * channels + c[None, :]
        inside = (y < height) & (x < width)[:, None] & (c < channels)[None, :]
        tl.store(out + image + at, z.to(out.dtype.element_ty), mask=inside)
        a0, a1, a2 = b0, b1, b2
        b0, b1, b2 = c0, c1, c2


@triton.jit(do_not_specialize=SIZES)
def _backward(
    grad,
    tokens,
    weight,
    bias,
    inner,
    sums,
    height,
    width,
    runs,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channels = runs * RUN
    image, top, left = _place(height, width, channels, ROWS, COLUMNS)
    x = left + tl.arange(0, COLUMNS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = _taps(weight, c, channels, False)
    shift = _of_channel(bias, c, channels, 1)
    zero = tl.zeros([COLUMNS, CHANNELS], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    a0, a1, a2 = _row(tokens + image, top - 1, x, c, height, width, channels)
    b0, b1, b2 = _row(tokens + image, top, x, c, height, width, channels)
    for y in range(top, tl.minimum(top + ROWS, height)):
        c0, c1, c2 = _row(tokens + image, y + 1, x, c, height, width, channels)
        z = a0 * w0 + a1 * w1 + a2 * w2 + b0 * w3 + b1 * w4 + b2 * w5 + c0 * w6 + c1 * w7 + c2 * w8 + shift
        slope = _normal(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)  # 1 / sqrt(2 pi)
        at = (y * width + x)[:, None] * channels + c[None, :]
        inside = (x < width)[:, None] & (c < channels)[None, :]
        g = tl.load(grad + image + at, mask=inside, other=0.0).to(tl.float32) * slope
        tl.store(inner + image + at, g.to(inner.dtype.element_ty), mask=inside)
        s0 += g * a0
        s1 += g * a1
        s2 += g * a2
        s3 += g * b0
        s4 += g * b1
        s5 += g * b2
        s6 += g * c0
        s7 += g * c1
        s8 += g * c2
        s9 += g
        a0, a1, a2 = b0, b1, b2
        b0, b1, b2 = c0, c1, c2
    _leave(sums, c, channels, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9)


@triton.jit
def _leave(sums, c, channels, s0, s1, s2, s3, s4, s5, s6, s7, s8, s9):
    """Write this program's sums, ``(10, F)`` of each program."""
    at = sums + tl.program_id(0).to(tl.int64) * 10 * channels + c
    tl.store(at, tl.sum(s0, 0), mask=c < channels)
    tl.store(at + channels, tl.sum(s1, 0), mask=c < channels)
    tl.store(at + 2 * channels, tl.sum(s2, 0), mask=c < channels)
    tl.store(at + 3 * channels, tl.sum(s3, 0), mask=c < channels)
    tl.store(at + 4 * channels, tl.sum(s4, 0), mask=c < channels)
    tl.store(at + 5 * channels, tl.sum(s5, 0), mask=c < channels)
    tl.store(at + 6 * channels, tl.sum(s6, 0), mask=c < channels)
    tl.store(at + 7 * channels, tl.sum(s7, 0), mask=c < channels)
    tl.store(at + 8 * channels, tl.sum(s8, 0), mask=c < channels)
    tl.store(at + 9 * channels, tl.sum(s9, 0), mask=c < channels)


@triton.jit
def _place(height, width, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of this program: where its image starts, its first row and its first column."""
    across = tl.cdiv(width, COLUMNS)
    down = tl.cdiv(height, ROWS)
    strip = tl.program_id(0)
    image = (strip // (across * down)).to(tl.int64) * height * width * channels
    top = (strip // across) % down * ROWS
    return image, top, strip % across * COLUMNS


@triton.jit
def _row(image, y, x, c, height, width, channels):
    """Row ``y`` of the map one column to the left, in place, and one to the right; zeros outside."""
    at = image + (y * width + x)[:, None] * channels + c[None, :]
    inside = (y >= 0) & (y < height) & (c < channels)[None, :]
    left = tl.load(at - channels, mask=inside & ((x > 0) & (x <= width))[:, None], other=0.0)
    here = tl.load(at, mask=inside & (x < width)[:, None], other=0.0)
    right = tl.load(at + channels, mask=inside & (x < width - 1)[:, None], other=0.0)
    return left.to(tl.float32), here.to(tl.float32), right.to(tl.float32)


@triton.jit
def _taps(weight, c, channels, FLIP: tl.constexpr):
    """The nine weights of each channel, row by row; the last one first with ``FLIP``."""
    first: tl.constexpr = 8 if FLIP else 0
    step: tl.constexpr = -1 if FLIP else 1
    w0 = _of_channel(weight + first, c, channels, 9)
    w1 = _of_channel(weight + first + step, c, channels, 9)
    w2 = _of_channel(weight + first + 2 * step, c, channels, 9)
    w3 = _of_channel(weight + first + 3 * step, c, channels, 9)
    w4 = _of_channel(weight + 4, c, channels, 9)
    w5 = _of_channel(weight + first + 5 * step, c, channels, 9)
    w6 = _of_channel(weight + first + 6 * step, c, channels, 9)
    w7 = _of_channel(weight + first + 7 * step, c, channels, 9)
    w8 = _of_channel(weight + first + 8 * step, c, channels, 9)
    return w0, w1, w2, w3, w4, w5, w6, w7, w8


@triton.jit
def _of_channel(values, c, channels, STEP: tl.constexpr):
    """A number of each channel in float32, as a row; in memory ``STEP`` numbers apart."""
    return tl.load(values + c * STEP, mask=c < channels, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _normal(z):
    """The distribution function of the standard normal distribution; GELU is ``z`` times it."""
    return 0.5 * (1.0 + tl.math.erf(z * 0.7071067811865476))  # sqrt(1/2)
