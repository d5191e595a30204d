"""Tensor names: which layout a state dict has, conversion to ours and back, and the check against a model.

State dicts here are of a backbone alone: mappings of tensor name to tensor, without the prefix ``backbone.``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, MutableMapping

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints.layouts import LAYOUTS, OURS_MARKER, Layout, Rule, fill, pattern
from upvit_mm.checkpoints.steps import KEEP
from upvit_mm.checkpoints.variants import remedy_of

logger = logging.getLogger('upvit_mm')
State = dict[str, Tensor]


def detect_layout(keys: Iterable[str]) -> Layout | None:
    """The foreign layout of a backbone's state dict; None when it is already ours.

    Raises:
        ValueError: none of the known layouts; the message lists them and the first keys.
    """
    keys = set(keys)
    if OURS_MARKER in keys:
        return None
    for layout in LAYOUTS:
        if layout.describes(keys):
            return layout
    known = ', '.join(['ours', *(layout.name for layout in LAYOUTS)])
    raise ValueError(
        f'checkpoint layout not recognised: {_some(sorted(keys))}. Known layouts: {known}. '
        'Check that the file is a plain ViT or PVTv2 of these, and which prefix its backbone has.'
    )


def to_ours(state: Mapping[str, Tensor], arch: ArchSpec | None = None) -> State:
    """A backbone's state dict of any known layout, converted to ours.

    Fused q, k, v are split. LayerScale goes into the Linear before it, which is exact.

    Args:
        state: without the prefix.
        arch: the network to load, whose heads set the rotary frequencies of a DINOv3; None takes heads of 64 channels,
            as in all published ones.

    Raises:
        ValueError: unknown layout, keys that the layout does not have, a DINOv3 with key biases or other periods.
    """
    layout = detect_layout(state)
    if layout is None:
        return dict(state)
    rules = [(pattern(rule.theirs), rule) for rule in layout.rules]
    ours, unknown = {}, []
    for key, tensor in state.items():
        spelled = layout.spelled(key)
        matches = [(m, rule) for expression, rule in rules if (m := expression.match(spelled))]
        for match, rule in matches:
            ours[fill(rule.ours, match.groupdict())] = _take(tensor, rule, key)
        if not matches and not _is_dropped(key, layout):
            unknown.append(key)
    if unknown:
        raise ValueError(
            f'{len(unknown)} tensor(s) have no place in a {layout.family} backbone ({layout.name} layout): '
            f'{_some(unknown)}. Is it a variant that this package does not build?'
        )
    for step in layout.steps:
        step.read(ours, arch)
    return ours


def from_ours(state: Mapping[str, Tensor], layout: Layout, arch: ArchSpec | None = None) -> State:
    """The inverse of ``to_ours`` for one layout: bit-identical tensors with its names; LayerScale is ones.

    Args:
        state: with our names.
        layout: the one to write.
        arch: as in ``to_ours``.

    Raises:
        ValueError: q, k, v have different widths, which a fused tensor cannot hold, or the rotary frequencies are those
            of a pruned network, for which others have no tensor.
    """
    theirs: State = {}
    fused: dict[str, dict[int, Tensor]] = {}
    ffn = 'swiglu' if any('.mlp.gate.' in key for key in state) else 'gelu'
    rules = [(pattern(rule.ours), rule) for rule in layout.rules if rule.ffn in ('', ffn)]
    state = dict(state)
    for step in reversed(layout.steps):
        step.write(state, arch)
    for key, tensor in state.items():
        match, rule = next(((m, r) for expression, r in rules if (m := expression.match(key))), (None, None))
        if rule is None:
            raise ValueError(f'tensor {key!r} has no place in the {layout.name} layout.')
        target = fill(rule.theirs, match.groupdict())
        if rule.slot[1] > 1:
            fused.setdefault(target, {})[rule.slot[0]] = tensor
        else:
            conv = rule.conv1x1 and tensor.ndim == 2
            theirs[target] = tensor[:, :, None, None] if conv else tensor
    for target, parts in fused.items():
        tensors = [parts[i] for i in sorted(parts)]
        if len({t.shape for t in tensors}) > 1:
            raise ValueError(
                f'{target}: the {layout.name} layout fuses tensors of one width, but this model has '
                f'{[len(t) for t in tensors]}. {KEEP}'
            )
        theirs[target] = torch.cat(tensors)
    return theirs


def to_ours_in_place(state: MutableMapping[str, Tensor], prefix: str, arch: ArchSpec | None = None) -> None:
    """Convert the backbone with this ``prefix`` in a larger state dict; ``check_state`` handles unknown names.

    ``arch`` as in ``to_ours``.
    """
    local = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    if OURS_MARKER in local or not any(layout.describes(local) for layout in LAYOUTS):
        return
    converted = to_ours(local, arch)
    for key in local:
        del state[prefix + key]
    state.update({prefix + k: v for k, v in converted.items()})


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    """Refuse a state dict that does not cover a model exactly.

    Args:
        state: the tensors to load.
        expected: the model's own state dict.
        name: the model, for the message.

    Raises:
        ValueError: a tensor is missing, extra or of another shape; the message has the first five and the count.
    """
    if problems := differences(state, expected):
        raise ValueError(
            f'checkpoint does not fit {name}: {len(problems)} tensors are missing, extra or of another shape '
            f'(the model has {len(expected)}): '
            f'{"; ".join(problems[:5])}{"; ..." if len(problems) > 5 else ""}. ' + remedy_of(state, expected)
        )


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Tensors of another shape, missing or extra in a state dict, in a few words each."""
    missing = [f'{k} is missing' for k in expected if k not in state]
    extra = [f'{k} is not in the model' for k in state if k not in expected]
    shapes = [
        f'{k} has shape {tuple(state[k].shape)}, the model {tuple(v.shape)}'
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    return shapes + missing + extra


def _take(tensor: Tensor, rule: Rule, key: str) -> Tensor:
    if rule.conv1x1:
        return tensor.flatten(1) if tensor.ndim == 4 else tensor
    part, parts = rule.slot
    if len(tensor) % parts:
        raise ValueError(f'{key} has {len(tensor)} rows, which is no multiple of {parts} (fused q, k, v).')
    return tensor.chunk(parts)[part].clone() if parts > 1 else tensor


def _is_dropped(key: str, layout: Layout) -> bool:
    for expression, reason in layout.dropped:
        if re.match(expression, key):
            logger.info('dropped %s: %s', key, reason)
            return True
    return False


def _some(keys: list[str]) -> str:
    return ', '.join(keys[:5]) + (f', ... ({len(keys)} in all)' if len(keys) > 5 else '')
