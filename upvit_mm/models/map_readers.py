"""Which tensors of a detector read the channels of the backbone's maps, and their slicing.

Nothing is declared: the detector is built again with one embedding at half its width. What reads its maps is what
changes then. A tensor may only follow the maps: one axis, as long as the maps have channels, in the same order. Two
checks make sure of it. Any other change of a shape is refused. And the narrower detector, with the kept channels cut
out of all tensors, must compute the same as the dense one with these channels gated off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning import prunable_dims, slice_state
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.plan import PrunePlan, make_plan
from upvit_mm.pruning.table import BACKBONE, Slot, stage_name

TOLERANCE = 1e-8  # relative, in float64
Build = Callable[[ArchSpec], nn.Module]  # the detector of other widths, whatever its weights
Outputs = Callable[[nn.Module, Tensor], object]  # what a detector computes from its maps, tensors in any nesting


@dataclass(frozen=True)
class MapReaders:
    """What follows the embeddings of a detector's backbone.

    Attributes:
        slots: by name of an embedding, the axes of tensors outside the backbone that follow it; maybe none.
        fixed: by name of an embedding that cannot be narrowed, the reason.
    """

    slots: Mapping[str, tuple[Slot, ...]]
    fixed: Mapping[str, str]

    def slice(self, state: Mapping[str, Tensor], plan: PrunePlan) -> dict[str, Tensor]:
        """A detector's tensors after pruning: those of the backbone, and those that read its maps."""
        sliced = slice_state(state, plan)
        for name, slots in self.slots.items():
            for slot in slots:
                kept = plan.kept[name].to(sliced[slot.tensor].device)
                sliced[slot.tensor] = sliced[slot.tensor].index_select(slot.axis, kept)
        return sliced


def find_map_readers(dense: nn.Module, build: Build, outputs: Outputs, image: Tensor) -> MapReaders:
    """What reads the maps of a detector.

    Args:
        dense: the detector, with one of our backbones as ``backbone``.
        build: builds it with another architecture of the backbone.
        outputs: what is compared.
        image: a small one, ``(1, 3, h, w)``, on the CPU.
    """
    dense = copy.deepcopy(dense).cpu().double().eval()
    slots, fixed = {}, {}
    arch = dense.backbone.arch
    for i, width in enumerate(arch.embed_dims):
        name, kept = f'{stage_name(i)}.embed', _half(width)
        widths = (*arch.embed_dims[:i], len(kept), *arch.embed_dims[i + 1 :])
        try:
            narrow = build(replace(arch, embed_dims=widths)).cpu().double().eval()
            found = readers_between(dense.state_dict(), narrow.state_dict(), width, len(kept))
            distance = _distance(dense, narrow, name, kept, found, outputs, image)
        except Exception as error:  # a module may refuse a width with any error
            fixed[name] = str(error)
            continue
        if distance > TOLERANCE:
            fixed[name] = f'without half of its channels the detector gives other outputs (by {distance:.1e})'
        else:
            slots[name] = found
    return MapReaders(slots, fixed)


def readers_between(
    wide: Mapping[str, Tensor], narrow: Mapping[str, Tensor], width: int, narrower: int
) -> tuple[Slot, ...]:
    """The axes outside the backbone that differ between two detectors because of one map.

    Args:
        wide: tensors of the dense detector.
        narrow: those of the narrower one.
        width: channels of the map in the dense detector.
        narrower: its channels in the other one.

    Raises:
        ValueError: a tensor differs in another way; the message names it.
    """
    slots = []
    for name, tensor in wide.items():
        if name.startswith(BACKBONE):
            continue
        here, there = tuple(tensor.shape), tuple(narrow[name].shape) if name in narrow else None
        if here == there:
            continue
        axes = [k for k, pair in enumerate(zip(here, there or ())) if pair[0] != pair[1]]
        if there is None or len(axes) != 1 or (here[axes[0]], there[axes[0]]) != (width, narrower):
            raise ValueError(f'{name} has shape {list(here)}, and {list(there or ())} after a map of half the width')
        slots.append(Slot(name, axes[0]))
    if extra := sorted(set(narrow) - set(wide)):
        raise ValueError(f'{extra[0]} is there only after a map of half the width')
    return tuple(slots)


def _half(width: int) -> Tensor:
    """Half of the channels, at random."""
    order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    return order[: (width + 1) // 2].sort().values


@torch.no_grad()
def _distance(
    dense: nn.Module,
    narrow: nn.Module,
    name: str,
    kept: Tensor,
    slots: tuple[Slot, ...],
    outputs: Outputs,
    image: Tensor,
) -> float:
    """Largest difference between the sliced and the gated detector, in units of the largest output."""
    plan = make_plan(dense.backbone.arch, {name: kept})
    narrow.load_state_dict(MapReaders({name: slots}, {}).slice(dense.state_dict(), plan))
    gate = torch.zeros(prunable_dims(plan.source_arch)[name].size, dtype=torch.float64).index_fill(0, kept, 1)
    whole = copy.deepcopy(dense)
    _blind(whole, slots, kept)
    with gates(whole.backbone, {name: gate}):
        theirs = _tensors(outputs(whole, image.double()))
    ours = _tensors(outputs(narrow, image.double()))
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() for a, b in zip(ours, theirs))


def _blind(detector: nn.Module, slots: Sequence[Slot], kept: Tensor) -> None:
    """Remove the other channels from the readers: a map that is not normalised has values there in spite of gates."""
    state = detector.state_dict()
    for slot in slots:
        tensor = state[slot.tensor]
        others = torch.ones(tensor.shape[slot.axis], dtype=torch.bool).index_fill(0, kept, False)
        tensor.index_fill_(slot.axis, others.nonzero().flatten(), 0)


def _tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
