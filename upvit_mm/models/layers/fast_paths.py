"""One switch for every faster second path of the layers: the same numbers, computed in another way.

They are: a depth-wise convolution, its bias and its GELU in one kernel (``depthwise.py``); windows of attention without
padding and masks, and heads filled up to a width that kernels like (``attention.py``); queries, keys and values in one
product, and linear layers as 1x1 convolutions on CPUs (``linear.py``); GELU in place (``mlp.py``).

``UPVIT_MM_FAST=0`` in the environment turns all of them off, and so does ``plain_paths()`` for some lines of code.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

VARIABLE = 'UPVIT_MM_FAST'


def _of_environment() -> bool:
    value = os.environ.get(VARIABLE, '1')
    if value not in ('0', '1'):
        raise ValueError(f'{VARIABLE} = {value!r}: must be 1 (fast paths, the default) or 0 (plain paths).')
    return value == '1'


_fast = _of_environment()


@contextlib.contextmanager
def plain_paths() -> Iterator[None]:
    """Every layer takes its plain path: to compare, or to find out whether a fast path is at fault."""
    global _fast
    before, _fast = _fast, False
    try:
        yield
    finally:
        _fast = before


def fast_paths() -> bool:
    """Whether the fast paths are on."""
    return _fast


def may_hurry(x: Tensor, *modules: nn.Module) -> bool:
    """Whether a fast path may take these modules' place for ``x``.

    Not in an export or a trace, whose graph must fit any size; not on the meta device, where multiply-accumulates are
    counted; and not where a hook looks at a module, because a fast path may not run it, or with other shapes.
    """
    if not _fast or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing() or x.is_meta:
        return False
    return not any(_is_watched(module) for module in modules)


def in_plain_inference() -> bool:
    """Whether code runs eagerly and nothing records it: no autograd, tracing or compilation."""
    return not (torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling())


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(len(found) > 0 for found in hooks)
