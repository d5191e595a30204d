"""GELU of a depth-wise 3x3 convolution of tokens, in one kernel where there is Triton (shape legend:
``layers/__init__.py``).

As three operations it writes the hidden map of a feed-forward network twice, and training keeps both. In one kernel it
is read once and written once, and training keeps only the input. Gradients of second order are not defined.
"""

from __future__ import annotations

import functools
import logging
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, shape_wrapper

from upvit_mm.arch.size import Grid
from upvit_mm.models.layers.fast_paths import may_hurry

try:
    from upvit_mm.models.layers import depthwise_kernels as kernels
except ImportError:  # a build of torch without Triton: for CPUs, or for Windows
    kernels = None

logger = logging.getLogger('upvit_mm')
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'  # Triton's interpreter runs the kernels on a CPU
LARGEST_ERROR = 1e-3  # float32 stays below 1e-5
OLDEST = (8, 0)  # compute capability: bfloat16 starts there


def runs_fused(x: Tensor, conv: nn.Conv2d, act: nn.Module) -> bool:
    """Whether one kernel computes ``act(conv(x))`` of tokens ``x``, ``(B, N, F)``: on GPUs, in 16 or 32 bits."""
    if kernels is None or not (x.is_cuda or INTERPRETED) or x.dtype not in DTYPES:
        return False
    if type(conv) is not nn.Conv2d or conv.bias is None or not may_hurry(x, conv, act):
        return False  # another class in its place, such as a quantised one, computes something else
    return torch.compiler.is_compiling() or _works_on(x.device)  # the compiler needs Triton itself


def depthwise_gelu(x: Tensor, conv: nn.Conv2d, grid: Grid) -> Tensor:
    """``gelu(conv(x))`` for tokens ``(B, N, F)`` on their ``grid``; see ``runs_fused``."""
    return torch.ops.upvit_mm.depthwise_gelu(x, conv.weight, conv.bias, *grid)


@functools.cache
def _works_on(device: torch.device) -> bool:
    """Whether Triton can build the kernels, and these compute what torch does; tried once on each device.

    The first launch needs a C compiler (gcc).
    """
    if device.type == 'cuda' and torch.cuda.get_device_capability(device) < OLDEST:
        return False
    try:
        error = _largest_error(device)
    except Exception as problem:  # of the compiler, the driver or Triton: it has many types
        lines = str(problem).strip().splitlines() or ['no message']
        why, remedy = f'{type(problem).__name__}: {lines[0]}', 'Install a C compiler (gcc) if it is missing, or set'
    else:
        if error < LARGEST_ERROR:
            return True
        why, remedy = f'its results differ from those of torch by {error:.0e}', 'Please report it, and set'
    logger.warning(
        'Triton does not work on %s (%s): depth-wise convolutions take the slower plain path. %s UPVIT_MM_FAST=0 to '
        'stop trying.',
        device,
        why,
        remedy,
    )
    return False


@torch.inference_mode(False)
@torch.enable_grad()
def _largest_error(device: torch.device) -> float:
    """Distance of the kernels' output and gradients from those of torch in float64, as a share of the largest value."""
    height, width, channels = (37, 21, 100) if device.type == 'cuda' else (3, 5, 9)  # Triton's interpreter is slow
    generator = torch.Generator().manual_seed(0)
    tokens = (1, height * width, channels)
    shapes = (tokens, (channels, 1, 3, 3), (channels,), tokens)
    x, weight, bias, grad = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    ours = (kernels.forward(x, weight, bias, height, width), *kernels.backward(grad, x, weight, bias, height, width))
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    image = leaves[0].transpose(1, 2).unflatten(2, (height, width))
    out = F.gelu(F.conv2d(image, leaves[1], leaves[2], padding=1, groups=channels)).flatten(2).transpose(1, 2)
    theirs = (out, *torch.autograd.grad(out, leaves, grad.double()))
    return max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs))


_INPUTS = 'Tensor x, Tensor weight, Tensor bias, SymInt height, SymInt width'  # torch 2.4 reads no annotations as text


@torch.library.custom_op('upvit_mm::depthwise_gelu', mutates_args=(), schema=f'({_INPUTS}) -> Tensor')
def _forward(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    return kernels.forward(x.contiguous(), weight.contiguous(), bias.contiguous(), height, width)


@torch.library.custom_op(
    'upvit_mm::depthwise_gelu_backward',
    mutates_args=(),
    schema=f'(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor)',
)
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (t.contiguous() for t in (grad, x, weight, bias))
    return kernels.backward(*tensors, height, width)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int):
    contiguous = torch.contiguous_format
    return tuple(torch.empty_like(t, memory_format=contiguous) for t in (x, weight, bias))


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, ctx.height, ctx.width = inputs
    ctx.save_for_backward(x, weight, bias)


def _differentiate(ctx, grad: Tensor):
    return *torch.ops.upvit_mm.depthwise_gelu_backward(grad, *ctx.saved_tensors, ctx.height, ctx.width), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _flops(x_shape: torch.Size, *shapes, factor: int, **ignored) -> int:
    """As torch counts a convolution: two for each multiply-accumulate."""
    return factor * 2 * 9 * x_shape.numel()


# not register_flop_formula: the counter of torch 2.4 does not find what it registers
flop_registry[torch.ops.upvit_mm.depthwise_gelu] = shape_wrapper(functools.partial(_flops, factor=1))
# again the convolution, then the gradients of its input and its weight
flop_registry[torch.ops.upvit_mm.depthwise_gelu_backward] = shape_wrapper(functools.partial(_flops, factor=3))
