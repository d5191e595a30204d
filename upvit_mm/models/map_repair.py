"""Repair of the layers that read a pruned backbone's maps, by ridge regression on unlabelled pictures.

The input is what such a convolution reads in the pruned detector, the target what it gives in the dense one. All of
them are solved from one pass, because each reads only the backbone's maps. This is ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upvit_mm.pruning.importance import Batch

logger = logging.getLogger('upvit_mm')
ROWS = 4096  # of a matrix product in single precision; the products are summed in double precision
Outputs = Callable[[nn.Module, Tensor], object]


@torch.no_grad()
def repair_readers(
    dense: nn.Module,
    pruned: nn.Module,
    names: Iterable[str],
    batches: Sequence[Batch],
    outputs: Outputs,
    ridge: float,
) -> dict[str, float]:
    """Correct the readers of a pruned detector in place.

    Args:
        dense: the whole dense detector, on the same device.
        pruned: the pruned one.
        names: tensors that read maps; those of modules other than plain convolutions stay as they are.
        batches: unlabelled pictures, preprocessed.
        outputs: runs a detector so far that all readers have run.
        ridge: weight of the change's square, in units of the mean square of the layer's input.

    Returns:
        By layer, the share of the squared lack that is left.
    """
    modules = dict.fromkeys(name.rpartition('.')[0] for name in names)
    pairs = {name: (dense.get_submodule(name), pruned.get_submodule(name)) for name in modules}
    systems = {name: _System(layer) for name, (_, layer) in pairs.items() if _System.takes(layer)}
    for batch in batches:
        wanted, given = {}, {}
        with _Looking({name: pairs[name][0] for name in systems}, wanted):
            outputs(dense, batch.images)
        with _Looking({name: pairs[name][1] for name in systems}, given):
            outputs(pruned, batch.images)
        for name, system in systems.items():
            (x, now), (_, target) = given[name], wanted[name]
            system.add(x, target - now)
    left = {name: system.solve(ridge) for name, system in systems.items()}
    for name, share in left.items():
        logger.info('re-solved %s: %.1f %% of what it lacked is left', name, 100 * share)
    return left


class _Looking:
    """Keep input and output of modules inside the ``with`` block, by name."""

    def __init__(self, modules: dict[str, nn.Module], seen: dict[str, tuple[Tensor, Tensor]]):
        self.modules, self.seen = modules, seen

    def __enter__(self) -> None:
        self.handles = [m.register_forward_hook(self._hook(name)) for name, m in self.modules.items()]

    def __exit__(self, *error) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str):
        def keep(module, args, output):
            self.seen[name] = args[0], output

        return keep


class _System:
    """The normal equations of a convolution's change, with a column of ones for its bias.

    A transposed convolution has one bias for all places of a patch, so its bias stays.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d):
        self.layer, self.turned = layer, isinstance(layer, nn.ConvTranspose2d)
        self.with_bias = layer.bias is not None and not self.turned
        inside, outside = len(layer.weight), layer.weight[0].numel()
        if not self.turned:
            inside, outside = outside, inside
        width, double = inside + self.with_bias, dict(dtype=torch.float64, device=layer.weight.device)
        self.gram, self.moment = torch.zeros(width, width, **double), torch.zeros(width, outside, **double)
        self.square = 0.0

    @staticmethod
    def takes(layer: nn.Module) -> bool:
        """Whether each of its outputs is a linear function of a patch of its input."""
        if isinstance(layer, nn.ConvTranspose2d):
            sides = layer.kernel_size == layer.stride and layer.padding == layer.output_padding == (0, 0)
            return sides and layer.groups == 1 and layer.dilation == (1, 1)
        return isinstance(layer, nn.Conv2d) and layer.groups == 1 and isinstance(layer.padding, tuple)

    def add(self, x: Tensor, lack: Tensor) -> None:
        """Add rows: the input ``(B, C, h, w)`` and the lack of the output ``(B, O, y, x)``."""
        layer = self.layer
        if self.turned:
            side, stride = layer.kernel_size, layer.stride
            lack = F.unfold(lack, side, stride=stride).transpose(1, 2)  # (B, h*w, O*k*k)
            x = x.flatten(2).transpose(1, 2)  # (B, h*w, C)
        else:
            x = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
            lack = lack.flatten(2).transpose(1, 2)  # (B, y*x, O)
        x, lack = x.flatten(0, 1), lack.flatten(0, 1)
        if self.with_bias:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        for rows, missing in zip(x.split(ROWS), lack.split(ROWS)):
            self.gram += rows.T @ rows
            self.moment += rows.T @ missing
        self.square += lack.double().square().sum().item()

    def solve(self, ridge: float) -> float:
        """Correct the layer; returns the share of the lack that is left."""
        layer, gram = self.layer, self.gram
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        change = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * eye, self.moment)
        explained = (2 * (change * self.moment).sum() - (change * (gram @ change)).sum()).item()
        weights = change[: len(change) - self.with_bias]
        layer.weight += (weights if self.turned else weights.T).reshape(layer.weight.shape).to(layer.weight)
        if self.with_bias:
            layer.bias += change[-1].to(layer.bias)
        return 1 - explained / self.square if self.square else 0.0
