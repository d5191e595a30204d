"""Repair of the layers that read a pruned backbone's maps, by ridge regression on unlabelled pictures.

The input is what such a convolution reads in the pruned detector, the target what it gives in the dense one. All of
them are solved from one pass, because each reads only the backbone's maps. This is ours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.full_precision import full_precision
from upvit_mm.pruning.ridge import LayerSystem

logger = logging.getLogger('upvit_mm')
Outputs = Callable[[nn.Module, Tensor], object]


@torch.no_grad()
@full_precision()
def repair_readers(
    dense: nn.Module,
    pruned: nn.Module,
    names: Iterable[str],
    batches: Sequence[Batch],
    outputs: Outputs,
    ridge: float | None,
) -> dict[str, float]:
    """Correct the readers of a pruned detector in place.

    Args:
        dense: the whole dense detector, on the same device.
        pruned: the pruned one.
        names: tensors that read maps; those of modules other than plain convolutions stay as they are.
        batches: unlabelled pictures, preprocessed.
        outputs: runs a detector so far that all readers have run.
        ridge: see ``compensate``.

    Returns:
        By layer, the share of the squared lack that is left.
    """
    modules = dict.fromkeys(name.rpartition('.')[0] for name in names)
    pairs = {name: (dense.get_submodule(name), pruned.get_submodule(name)) for name in modules}
    systems = {name: LayerSystem([layer]) for name, (_, layer) in pairs.items() if LayerSystem.takes(layer)}
    for batch in batches:
        wanted, given = {}, {}
        with _Looking({name: pairs[name][0] for name in systems}, wanted):
            outputs(dense, batch.images)
        with _Looking({name: pairs[name][1] for name in systems}, given):
            outputs(pruned, batch.images)
        for name, system in systems.items():
            (x, now), (_, target) = given[name], wanted[name]
            system.add(x, [target - now], None)
    left = {name: system.solve(ridge, name) for name, system in systems.items()}
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
