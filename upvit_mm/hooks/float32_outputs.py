"""Mixed precision in bfloat16 for detectors whose losses, anchors and operators do not have it."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from upvit_mm.hooks.unwrapped import model_of
from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class Float32Outputs(Hook):
    """In a training with mixed precision, neck and dense heads of a detector give their outputs in float32.

    Inside they still compute in the lower precision. mmcv's operators (focal loss, RoIAlign) have no bfloat16. mmdet
    makes the anchors of proposals in the precision of the head's outputs: bfloat16 has steps of 8 pixels above 1024.
    """

    def __init__(self):
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        for module in parts_of(model_of(runner)):
            self._handles.append(module.register_forward_hook(_in_float32))

    def after_train(self, runner: Runner) -> None:
        while self._handles:
            self._handles.pop().remove()


def parts_of(detector: nn.Module) -> list[nn.Module]:
    """The neck of a detector of mmdet and its heads on whole maps."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    neck = [detector.neck] if getattr(detector, 'with_neck', False) else []
    return [*neck, *(module for module in detector.modules() if isinstance(module, BaseDenseHead))]


def _in_float32(module: nn.Module, given: Any, outputs: Any) -> Any:
    """A forward hook: all tensors of low precision in ``outputs``, in any nesting."""
    return tree_map(_raised, outputs)


def _raised(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if low else value
