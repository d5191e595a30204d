"""Mixed precision in bfloat16 on any device, also on CPUs."""

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
        Many CPUs get slower by it. On an Intel Xeon with avx512_bf16 and without amx_bf16 layers took 1.7 to 1.8 times
        as long as in float32; with AVX2 alone, where torch emulates it, 12 to 48 times. Time a step before you use it.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
