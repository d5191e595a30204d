"""Mixed precision in bfloat16 on any device, also on CPUs that have instructions for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from upvit_mm.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` whose steps run under ``torch.autocast`` in bfloat16.

    mmengine's ``AmpOptimWrapper`` refuses to run on a CPU. bfloat16 has the range of float32, so losses are not scaled.
    A detector also needs the hook ``upvit_mm.Float32Outputs``.

    Note:
        A CPU without bfloat16 instructions (avx512_bf16, amx_bf16) gets slower by it; torch emulates them.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
