"""The head that belongs to a backbone in a state dict: which tensors it has, and whether it is one linear layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]
# names of heads next to or inside a classifier's backbone; pre_logits is the hidden layer of old ViT heads
HEADS = ('head', 'head_dist', 'fc', 'classifier', 'cls_head', 'pre_logits')


def is_head(name: str) -> bool:
    """Whether a tensor of this name, after a backbone's prefix, belongs to a head."""
    return name.partition('.')[0] in HEADS


def head_of(tensors: Mapping[str, Tensor], prefix: str) -> tuple[str, State]:
    """The head's tensors nearest to a backbone: inside its prefix, or beside one of the modules around it.

    Args:
        tensors: a whole state dict.
        prefix: the text before the backbone's names, with a dot at the end, or empty.

    Returns:
        The text before the head's names, and its tensors with names like ``head.weight``; empty when there is none.
    """
    base = prefix
    while True:
        found = {k[len(base) :]: v for k, v in tensors.items() if k.startswith(base) and is_head(k[len(base) :])}
        if found or not base:
            return base, found
        parent = base.rstrip('.').rpartition('.')[0]
        base = f'{parent}.' if parent else ''


def linear_head(head: Mapping[str, Tensor], path: object) -> tuple[State, list[str]]:
    """The single linear layer of a head.

    Args:
        head: its tensors, from ``head_of``.
        path: of the file, for messages.

    Returns:
        ``weight`` ``(classes, C)`` and ``bias`` ``(classes,)``, or nothing for an empty head; and the names that are
        left out: the head of a distillation token, and numbers of a loss.

    Raises:
        ValueError: it has hidden layers, or no bias.
    """
    extra = [k for k in head if any(w.endswith('_dist') or w.startswith('loss') for w in k.split('.'))]
    kept = {k: v for k, v in head.items() if k not in extra}
    layers = {k.rpartition('.')[0] for k in kept}
    parts = {k.rpartition('.')[2]: v for k, v in kept.items()}
    if not kept:
        return {}, extra
    if len(layers) == 1 and set(parts) == {'weight'} and parts['weight'].ndim == 2:
        raise ValueError(
            f'checkpoint {str(path)!r}: its head has no bias ({next(iter(layers))}.bias); add one of zeros.'
        )
    if len(layers) == 1 and set(parts) == {'weight', 'bias'} and parts['weight'].ndim == 2:
        return parts, extra
    raise ValueError(
        f'checkpoint {str(path)!r}: its head is more than one linear layer ({", ".join(list(kept)[:5])}), and this '
        'package has linear heads only. Take the backbone alone: tools/convert_checkpoint.py IN OUT --no-head.'
    )
