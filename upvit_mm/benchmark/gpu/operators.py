"""NMS, RoIAlign and the sigmoid focal loss of torchvision in the place of mmcv's, where mmcv has none for the device.

mmcv's operators must be compiled, for CUDA for minutes. A report does without: its process gets a module ``mmcv._ext``
with the three operators that the detectors of the report call. All others raise when they are called.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = 'mmcv._ext'


def replace_missing(device: str) -> str | None:
    """Put torchvision's operators in the place of mmcv's, if mmcv's do not run on the device.

    It must be called before anything imports ``mmcv.ops``, and holds until the process ends.

    Args:
        device: ``'cpu'`` or ``'cuda'``.

    Returns:
        A sentence about it for the reader; None if nothing was replaced.
    """
    try:
        import mmcv
    except ImportError:
        return None  # the import of the models will say so
    if _runs(device):
        return None
    try:
        module = make_module()
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch raises RuntimeError
        return (
            f'mmcv has no operators for {device}, and torchvision, which would replace them, does not import: {error}.'
        )
    sys.modules[NAME] = mmcv._ext = module
    return f'mmcv has no operators for {device}: NMS, RoIAlign and the focal loss are those of torchvision.'


def _runs(device: str) -> bool:
    try:
        operators = importlib.import_module(NAME)
    except ImportError:
        return False
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)
    try:
        operators.nms(box, box[0, :1], iou_threshold=0.5, offset=0)
    except RuntimeError:  # built for other devices
        return False
    return True


def make_module() -> ModuleType:
    """A module with the interface of ``mmcv._ext``.

    Raises:
        ImportError: there is no torchvision.
        RuntimeError: it does not fit torch.
    """
    import torchvision  # noqa: F401  (registers its operators)

    module = ModuleType(NAME)
    for operator in (
        nms,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
    ):
        setattr(module, operator.__name__, operator)
    module.__getattr__ = _missing
    return module


def _missing(name: str) -> Callable:
    if name.startswith('__'):
        raise AttributeError(name)

    def operator(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f'mmcv._ext.{name}: only NMS, RoIAlign and the focal loss are replaced here.')

    return operator


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes ``(N, 4)`` that stay, best first; ``offset`` is added to their width and height."""
    from torchvision.ops import nms

    boxes = boxes.float()
    return nms(torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1), scores.float(), iou_threshold)


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **how: Any
) -> None:
    """Fill ``output`` ``(regions, C, h, w)``."""
    _require_average(how)
    size = (how['aligned_height'], how['aligned_width'])
    operator = torch.ops.torchvision.roi_align
    output.copy_(operator(input, rois.to(input), how['spatial_scale'], *size, how['sampling_ratio'], how['aligned']))


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **how: Any
) -> None:
    """Fill ``grad_input`` ``(B, C, H, W)``."""
    _require_average(how)
    sizes = (how['aligned_height'], how['aligned_width'], *grad_input.shape)
    operator = torch.ops.torchvision._roi_align_backward  # what torchvision's own autograd calls
    rois = rois.to(grad_output)
    grad_input.copy_(operator(grad_output, rois, how['spatial_scale'], *sizes, how['sampling_ratio'], how['aligned']))


def _require_average(how: dict[str, Any]) -> None:
    if how['pool_mode'] != 1:
        raise NotImplementedError('RoIAlign by maximum: torchvision has only the average.')


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``output`` ``(N, classes)``; a target of ``classes`` is background."""
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` ``(N, classes)`` with the gradient of the loss of each entry."""
    with torch.enable_grad():
        leaf = input.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_focal_loss(leaf, target, weight, gamma, alpha).sum(), leaf)
    grad_input.copy_(gradient)


def _focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    if weight.numel():
        raise NotImplementedError('focal loss with weights of classes: torchvision has none.')
    classes = input.shape[1]
    return sigmoid_focal_loss(input.float(), F.one_hot(target, classes + 1)[:, :classes].float(), alpha, gamma)
