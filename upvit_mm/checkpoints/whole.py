"""A whole model's tensors from a file with another layout, other names, or more tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints.contents import WRAPPERS, Place, State, find_backbone, find_model
from upvit_mm.checkpoints.heads import linear_head
from upvit_mm.checkpoints.keys import to_ours_in_place

WRAPPED = tuple(f'{word}.' for word in WRAPPERS)
# tensors that do not change predictions, and why
HARMLESS = {
    r'data_preprocessor\.': 'mean and deviation of the images are set by the config',
    r'(.*\.)?num_batches_tracked$': 'a count that batch normalisation keeps for training',
    r'distill_losses\.': 'layers of losses',
}
HARMLESS_EXTRA = {
    r'ema_': 'the second set of weights that hooks of mmcv 1 keep',
    r'teacher\.': 'a network beside the model, which taught it',
}


def is_harmless(name: str, extra: bool) -> bool:
    """Whether predictions do not depend on a tensor that only one side has.

    Args:
        name: name of the tensor.
        extra: True if the file has it and the model does not; False if only the model has it.
    """
    return any(re.match(expression, name) for expression in (*HARMLESS, *(HARMLESS_EXTRA if extra else ())))


def model_state(
    content: Mapping[str, Any],
    expected: Mapping[str, Tensor],
    backbones: Mapping[str, ArchSpec],
    path: object,
    weights: str | None = None,
) -> State:
    """The tensors of a file with the names of a model, where known layouts and wrappers allow it.

    Args:
        content: content of the file.
        expected: the model's own state dict.
        backbones: the arch of each of our backbones in the model, by the text before its names, for example
            ``'backbone.'``.
        path: of the file, for messages.
        weights: see ``load_backbone``.

    Returns:
        All tensors of the file's model. A backbone of a known layout has our names, and a linear head has the model's
        names; all other tensors keep their names.

    Raises:
        ValueError: no tensors, several backbones, or a variant of a known layout that this package does not build.
    """
    if len(backbones) == 1:
        ((prefix, arch),) = backbones.items()
        return _around_backbone(find_backbone(content, path, weights=weights), expected, prefix, arch, path)
    state = find_model(content, path, weights).tensors
    while not state.keys() & expected.keys() and all(name.startswith(WRAPPED) for name in state):
        state = {name.partition('.')[2]: v for name, v in state.items()}
    return dict(state)


def _around_backbone(place: Place, expected: Mapping[str, Tensor], ours: str, arch: ArchSpec, path: object) -> State:
    root = place.prefix.removesuffix(ours) if place.prefix.endswith(ours) else None
    state = {f'{ours}{k}': v for k, v in place.backbone().items()}
    to_ours_in_place(state, ours, arch)
    rest = place.rest() if root is None else {k[len(root) :]: v for k, v in place.rest().items() if k.startswith(root)}
    return state | _head(place.head(), expected, path) | rest


def _head(head: State, expected: Mapping[str, Tensor], path: object) -> State:
    """A linear head with the model's names; any other head, or a head for a model without one, with its own names."""
    layers = {k.rpartition('.')[0] for k in expected if k.startswith('head.')}
    if len(layers) != 1 or head.keys() <= expected.keys():
        return head
    try:
        linear, extra = linear_head(head, path)
    except ValueError:  # hidden layers: the comparison with the model names missing and extra tensors
        return head
    return {f'{next(iter(layers))}.{k}': v for k, v in linear.items()} | {k: head[k] for k in extra}
