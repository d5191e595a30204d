"""What sets one plain ViT apart from another, as tensors show it: names for the difference, and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

POSITIONS, PATCHES, CLASS = 'pos_embed', 'stages.0.patch_embed.proj.weight', 'cls_token'
OTHERWISE = 'Use the arch.json that was written beside the checkpoint, or the checkpoint of this arch'
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trait:
    """A difference between plain ViTs.

    Attributes:
        words: of a network with this value.
        value: from the tensors of a backbone, without a prefix; None if they do not show it.
        remedy: the setting of the arch with this value.
    """

    words: str
    value: Callable[[State], Any]
    remedy: str


def image_size(state: State) -> int | None:
    """Pixels of a side of the training images, where a square of learned positions shows it."""
    if POSITIONS not in state:
        return None
    count = state[POSITIONS].shape[1] - 1  # one is the class token's
    side = math.isqrt(max(count, 0))
    return side * state[PATCHES].shape[-1] if side**2 == count else None


TRAITS = (
    Trait('{} registers', lambda s: s['reg_token'].shape[1] if 'reg_token' in s else 0, 'num_registers={}'),
    Trait('{} positions', lambda s: 'learned' if POSITIONS in s else 'rotary', 'a family with {} positions'),
    Trait("ffn='{}'", lambda s: 'swiglu' if any('.mlp.gate.' in k for k in s) else 'gelu', "ffn='{}'"),
    Trait('patches of {} px', lambda s: s[PATCHES].shape[-1], 'patch_size={}'),
    Trait('images of {} px', image_size, 'img_size={}'),
)


def remedy_of(state: State, expected: State) -> str:
    """What to do about tensors that do not fit a backbone.

    Args:
        state: tensors of a file; names may have a prefix.
        expected: the backbone's own, with the same prefix.
    """
    if not state:
        return f'{OTHERWISE}; is its prefix right?'
    return named_remedy(state, expected) or f'{OTHERWISE}.'


def named_remedy(state: State, expected: State) -> str | None:
    """The differences between two plain ViTs by name, and the settings of the arch to change; None without any."""
    prefix = next((key.removesuffix(PATCHES) for key in expected if key.endswith(PATCHES)), '')
    theirs, ours = ({k.removeprefix(prefix): v for k, v in tensors.items()} for tensors in (state, expected))
    if not all({PATCHES, CLASS} <= tensors.keys() for tensors in (theirs, ours)):
        return None
    if (same_image := _image_size_remedy(theirs, ours)) is not None:
        return same_image
    values = [(trait, trait.value(theirs), trait.value(ours)) for trait in TRAITS]
    differ = [(trait, there, here) for trait, there, here in values if None not in (there, here) and there != here]
    if not differ or {trait.remedy for trait, _, _ in differ} == {'img_size={}'}:  # no other kind of network
        return None
    words = ', '.join(f'{t.words.format(there)} (the model: {here})' for t, there, here in differ)
    settings = ', '.join(t.remedy.format(there) for t, there, _ in differ)
    return f'It is a network with {words}. Build an arch with {settings}. Or {OTHERWISE[0].lower()}{OTHERWISE[1:]}.'


def _image_size_remedy(state: State, expected: State) -> str | None:
    """The setting of the arch to change when a plain ViT has other images or patches and all else fits."""
    shapes, others = ({k: v.shape for k, v in tensors.items()} for tensors in (state, expected))
    wrong = {k for k in {**shapes, **others} if shapes.get(k) != others.get(k)}
    if not wrong or wrong - {POSITIONS, PATCHES} or not wrong <= shapes.keys() & others.keys():
        return None
    if shapes[PATCHES][:2] != others[PATCHES][:2] or POSITIONS not in shapes:  # other channels, or no positions
        return None
    count, patch, built = shapes[POSITIONS][1], shapes[PATCHES][-1], others[PATCHES][-1]
    if (size := image_size(state)) is None:
        return f'Its {count} positions are not a class token and a square of patches, as in a ViT of this package.'
    side, other, resampling = size // patch, '', ''
    if PATCHES in wrong:
        other = f'patch_size={patch} and '
        resampling = f' Or resample its patches: tools/convert_checkpoint.py --patch-size {built} (approximate).'
    return (
        f'It was trained at {size} px ({side}x{side} patches of {patch} px): set {other}img_size={size} in the arch. '
        f'Images of any size can be given to the network then.{resampling}'
    )
