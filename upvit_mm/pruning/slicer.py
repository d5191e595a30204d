"""Physical slicing of a classifier's (or backbone's) state dict; it knows tensor names, but no families."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from upvit_mm.pruning.cosines import narrowing, times
from upvit_mm.pruning.dims import PrunableDim, prunable_dims, table_of
from upvit_mm.pruning.plan import PrunePlan
from upvit_mm.pruning.table import BACKBONE, block_name, stage_name

State = dict[str, Tensor]
ATTN_BRANCH = ('norm1', 'attn')  # modules of a block that belong to its attention; the rest is feed-forward
BLOCK_KEY = re.compile(rf'{re.escape(BACKBONE)}stages\.(?P<i>\d+)\.blocks\.(?P<j>\d+)\.(?P<module>\w+)\.(?P<rest>.+)')


def slice_state(state: Mapping[str, Tensor], plan: PrunePlan) -> State:
    """The tensors of the network that a plan leaves.

    Args:
        state: ``backbone.*`` of the source architecture in our layout, and ``head.fc.*`` if there is a head.
        plan: what stays.

    Returns:
        ``backbone.*`` of the target architecture and the head; copies, never views. Where the target's logit scale
        differs from the source's, the factor is folded into q, so that the logits do not change.

    Raises:
        ValueError: a tensor that a kept dim owns is missing or has another size than the source architecture.
    """
    sliced, dims = dict(state), prunable_dims(plan.source_arch).values()
    for dim in dims:
        _check_slots(state, dim)
    for name in plan.turned:
        sliced |= _narrow_stream(state, plan, int(name.split('.')[1]))
    for dim in dims:
        kept = plan.kept[dim.name]
        if dim.name in plan.turned or len(kept) == dim.size:
            continue
        for slot in (slot for slot in dim.slots if slot.tensor in sliced):
            key, axis = slot.tensor, slot.axis
            stays = _kept_heads(plan, dim, key) if slot.per_head else kept
            places = slot.places(stays, slot.length(dim.size, dim.groups)).to(sliced[key].device)
            sliced[key] = sliced[key].index_select(axis, places)
    return _fold_scales(_restack({k: v.clone() for k, v in sliced.items()}, plan), plan)


def _check_slots(state: Mapping[str, Tensor], dim: PrunableDim) -> None:
    """Refuse a state dict without the tensors of a dim, or with other widths; a backbone alone has no head.

    Raises:
        ValueError: the tensor and what the plan says of it.
    """
    for slot in dim.slots:
        key, axis, length = slot.tensor, slot.axis, slot.length(dim.size, dim.groups)
        if key not in state:
            if key.startswith('head.'):
                continue
            raise ValueError(f'checkpoint has no {key}, which {dim.name} of the plan prunes; another arch?')
        if state[key].shape[axis] != length:
            raise ValueError(
                f'{key} has shape {tuple(state[key].shape)}: {dim.name} of the plan has {length} channels on axis '
                f'{axis}; is the checkpoint of another arch?'
            )


def _narrow_stream(state: Mapping[str, Tensor], plan: PrunePlan, stage: int) -> State:
    """The tensors at the residual stream of a turned stage, by the directions that stay.

    Raises:
        ValueError: the network is not turned.
    """
    table, kept = table_of(plan.source_arch), plan.kept[f'{stage_name(stage)}.embed']
    write, read = narrowing(kept, plan.source_arch.embed_dims[stage])
    narrow = {}
    for norm, keys in table.stream_readers(plan.source_arch, stage).items():
        for key in (f'{norm}.weight', f'{norm}.bias'):
            if not torch.allclose(state[key], torch.ones_like(state[key])):
                raise ValueError(
                    f'{key} is not 1: the plan keeps directions of a turned network; give the turned.pth of its job.'
                )
            narrow[key] = state[key][: len(kept)]
        narrow |= {key: times(state[key], read.T, 1) for key in keys if key in state}
    for slot in table.stream_writers(plan.source_arch, stage):
        narrow[slot.tensor] = times(state[slot.tensor], write, slot.axis)
    return narrow


def _kept_heads(plan: PrunePlan, dim: PrunableDim, key: str) -> Tensor:
    """The source head of each new head of a block, ``(new heads,)``; all heads for a block that is removed.

    Raises:
        ValueError: a new head has channels of several source heads.
    """
    places = [new for new, (attn, _) in enumerate(plan.kept_blocks[dim.stage]) if attn == dim.block]
    if not places:
        return torch.arange(dim.groups)
    heads = plan.target_arch.num_heads[dim.stage][places[0]]
    owners = plan.kept[dim.name].view(heads, -1) // (dim.size // dim.groups)
    if bool((owners != owners[:, :1]).any()):
        raise ValueError(
            f"{key} has a place for each head, and {dim.name} of the plan mixes heads (head_policy='regroup'): take "
            "'within' or 'select'."
        )
    return owners[:, 0]


def _restack(state: State, plan: PrunePlan) -> State:
    """Renumber the kept blocks."""
    places: dict[tuple[int, int, bool], int] = {}  # (stage, source block, is attention) -> new block
    for i, pairs in enumerate(plan.kept_blocks):
        for new, (attn, mlp) in enumerate(pairs):
            places[i, attn, True] = places[i, mlp, False] = new
    restacked = {}
    for key, tensor in state.items():
        match = BLOCK_KEY.fullmatch(key)
        if match is None:
            restacked[key] = tensor
            continue
        i, j, module = int(match['i']), int(match['j']), match['module']
        new = places.get((i, j, module in ATTN_BRANCH))
        if new is not None:
            restacked[f'{BACKBONE}{block_name(i, new)}.{module}.{match["rest"]}'] = tensor
    return restacked


def _fold_scales(state: State, plan: PrunePlan) -> State:
    for i, pairs in enumerate(plan.kept_blocks):
        for new, (attn, _) in enumerate(pairs):
            factor = plan.source_arch.qk_scales[i][attn] / plan.target_arch.qk_scales[i][new]
            if factor != 1:
                for parameter in ('weight', 'bias'):
                    state[f'{BACKBONE}{block_name(i, new)}.attn.q.{parameter}'] *= factor
    return state
