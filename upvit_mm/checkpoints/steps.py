"""What is more than a new name when a state dict is converted: sums and products of tensors, both ways.

A step works in place on tensors with our names. Where another layout has a tensor that our backbones do not have, a
rule gives it one of the names below, and the step uses it up.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.rotary import dense_frequencies

logger = logging.getLogger('upvit_mm')
State = dict[str, Tensor]

GAMMAS = {'attn.gamma': 'attn.proj', 'mlp.gamma': 'mlp.fc2'}  # LayerScale of a block -> the Linear before it
MASK = 'attn.bias_mask'  # 0 or 1 for each bias of q, k and v
PERIODS = 'periods'  # of the pairs of channels that turn with y, the same for all heads
FREQUENCIES = 'attn.rotary.frequencies'
HEAD_WIDTH = 64  # of queries and keys, in all published DINOv3
ROUNDED = 1e-2  # relative; Meta's periods are bfloat16
KEEP = 'Keep it in our layout (--to ours).'


def _nothing(state: State, arch: ArchSpec | None) -> None:
    pass


@dataclass(frozen=True)
class Step:
    """A part of a conversion that is more than new names.

    Attributes:
        read: theirs becomes ours; it runs after the tensors have got our names.
        write: ours becomes theirs; it runs before they get other names. Both know the arch, or None.
    """

    read: Callable[[State, ArchSpec | None], None] = _nothing
    write: Callable[[State, ArchSpec | None], None] = _nothing


def _blocks(state: State, end: str) -> list[str]:
    """The text before ``end`` in all names that end so: ``stages.0.blocks.J.``."""
    return [key.removesuffix(end) for key in state if key.endswith(f'.{end}')]


# ------------------------------------------------------------ distillation token


def _drop_distillation(state: State, arch: ArchSpec | None) -> None:
    if state.pop('dist_token', None) is None:
        return
    logger.warning('dropped dist_token: the distillation token has no place in a plain DeiT')
    positions = state['pos_embed']
    state['pos_embed'] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)  # the second is its own


# -------------------------------------------------------------------- LayerScale


def _fold_scales(state: State, arch: ArchSpec | None) -> None:
    """``gamma * (W x + b)`` = ``(gamma W) x + gamma b``."""
    for name, target in GAMMAS.items():
        for block in _blocks(state, name):
            gamma = state.pop(f'{block}{name}')
            for part in (f'{block}{target}.weight', f'{block}{target}.bias'):
                if part in state:  # else it is missing, and the comparison with the model says so
                    state[part] = _scaled(state[part], gamma)


def _scaled(tensor: Tensor, gamma: Tensor) -> Tensor:
    """The product with the rows, in float32 or better."""
    dtype = functools.reduce(torch.promote_types, (tensor.dtype, gamma.dtype, torch.float32))
    return tensor.to(dtype) * gamma.to(dtype).view(-1, *[1] * (tensor.ndim - 1))


def _add_scales(state: State, arch: ArchSpec | None) -> None:
    for name, target in GAMMAS.items():
        for block in _blocks(state, f'{target}.bias'):
            state[f'{block}{name}'] = torch.ones_like(state[f'{block}{target}.bias'])


# --------------------------------------------------- the class token's position


def _add_class_position(state: State, arch: ArchSpec | None) -> None:
    """timm adds it to the class token where there are registers (``no_embed_class``); then ours is zero."""
    positions = state.get('pos_embed')
    if positions is not None and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        state['pos_embed'] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)


def _drop_class_position(state: State, arch: ArchSpec | None) -> None:
    if 'reg_token' in state:
        positions = state['pos_embed']
        state['cls_token'] = state['cls_token'] + positions[:, :1]
        state['pos_embed'] = positions[:, 1:]


# ------------------------------------------------------------------------ SwiGLU


def _unpack(state: State, arch: ArchSpec | None) -> None:
    """timm has the gate in the first half of ``fc1``, under the names of a GELU network."""
    for block in _blocks(state, 'mlp.fc2.weight'):
        if len(state.get(f'{block}mlp.fc1.weight', ())) == 2 * state[f'{block}mlp.fc2.weight'].shape[1]:
            for part in ('weight', 'bias'):
                gate, fc1 = state[f'{block}mlp.fc1.{part}'].chunk(2)
                state[f'{block}mlp.gate.{part}'], state[f'{block}mlp.fc1.{part}'] = gate.clone(), fc1.clone()


def _pack(state: State, arch: ArchSpec | None) -> None:
    for block in _blocks(state, 'mlp.gate.weight'):
        for part in ('weight', 'bias'):
            halves = state.pop(f'{block}mlp.gate.{part}'), state[f'{block}mlp.fc1.{part}']
            state[f'{block}mlp.fc1.{part}'] = torch.cat(halves)


# ------------------------------------------------------------ biases of attention


def _mask_biases(state: State, arch: ArchSpec | None) -> None:
    """The bias of keys is masked in pretraining; only without it the network is one of ours."""
    for block in _blocks(state, MASK):
        for name, mask in zip('qkv', state.pop(f'{block}{MASK}').chunk(3)):
            bias = state[f'{block}attn.{name}.bias']
            state[f'{block}attn.{name}.bias'] = torch.where(mask != 0, bias * mask.to(bias), 0)
    for block in _blocks(state, 'attn.k.bias'):
        if state.pop(f'{block}attn.k.bias').any():
            raise ValueError(
                f'{block}attn.k.bias has values other than 0: keys of a DINOv3 of this package have no bias, as in all '
                'published ones.'
            )


def _add_mask(state: State, arch: ArchSpec | None) -> None:
    for block in _blocks(state, 'attn.q.bias'):
        ones = torch.ones_like(state[f'{block}attn.q.bias'])
        state[f'{block}attn.k.bias'] = torch.zeros_like(ones)
        state[f'{block}{MASK}'] = torch.cat([ones, 0 * ones, ones])


def _add_biases(state: State, arch: ArchSpec | None) -> None:
    """Published DINOv3 of some sizes have biases of zero, and files leave them out."""
    for name in 'qv':
        for block in _blocks(state, f'attn.{name}.weight'):
            weight = state[f'{block}attn.{name}.weight']
            state.setdefault(f'{block}attn.{name}.bias', weight.new_zeros(len(weight)))


# -------------------------------------------------------------- rotary positions


def _add_frequencies(state: State, arch: ArchSpec | None) -> None:
    """No tensor shows the heads, on which frequencies depend: from the arch, the periods, or as published."""
    periods = state.pop(PERIODS, None)
    if arch is None and periods is None:
        logger.info('no tensor shows the heads: they are taken to be %d channels wide, as published', HEAD_WIDTH)
    for block in _blocks(state, 'attn.q.weight'):
        width = len(state[f'{block}attn.q.weight'])
        heads = _heads(block, width, arch, periods)
        state[f'{block}{FREQUENCIES}'] = frequencies = dense_frequencies(width, heads)
        if periods is not None:
            _check_periods(periods, _periods_of(frequencies, width // heads))


def _heads(block: str, width: int, arch: ArchSpec | None, periods: Tensor | None = None) -> int:
    j = int(block.split('.')[3])
    if arch is not None and arch.kind.rotary and j < arch.depths[0] and arch.qk_dims[0][j] == width:
        return arch.num_heads[0][j]
    return max(width // (HEAD_WIDTH if periods is None else 4 * len(periods)), 1)


def _periods_of(frequencies: Tensor, head_width: int) -> Tensor:
    return 2 * math.pi / frequencies[: head_width // 4, 0]


def _check_periods(theirs: Tensor, ours: Tensor) -> None:
    if len(theirs) != len(ours):
        raise ValueError(
            f'rope_embed.periods has {len(theirs)} values, as for heads of {4 * len(theirs)} channels; the arch has '
            f'heads of {4 * len(ours)}. Use the arch of this file.'
        )
    if not torch.allclose(theirs.to(ours), ours, rtol=ROUNDED):
        raise ValueError(
            f'rope_embed.periods run from {theirs.min():.4g} to {theirs.max():.4g}: in a DINOv3 of this package they '
            f'run from {ours.min():.4g} to {ours.max():.4g}, as in all published ones.'
        )


def _drop_frequencies(state: State, arch: ArchSpec | None, keep_periods: bool = False) -> None:
    for block in _blocks(state, FREQUENCIES):
        frequencies = state.pop(f'{block}{FREQUENCIES}')
        width = len(frequencies)
        heads = _heads(block, width, arch)
        if width % (4 * heads) or not torch.allclose(frequencies.float(), dense_frequencies(width, heads)):
            raise ValueError(
                f'{block}{FREQUENCIES}: {heads} heads of {width // heads} channels do not turn as those of an unpruned '
                f'network with a multiple of 4 channels in a head, and no other layout can hold this. {KEEP}'
            )
        if keep_periods:
            state[PERIODS] = _periods_of(frequencies, width // heads).to(torch.bfloat16)


DISTILLATION = Step(_drop_distillation)
LAYER_SCALE = Step(_fold_scales, _add_scales)
CLASS_POSITION = Step(_add_class_position, _drop_class_position)
PACKED = Step(_unpack, _pack)
KEY_BIAS = Step(_mask_biases, _add_mask)
QV_BIASES = Step(_add_biases)
ROTARY = Step(_add_frequencies, _drop_frequencies)
ROTARY_PERIODS = Step(_add_frequencies, functools.partial(_drop_frequencies, keep_periods=True))
