"""Conversion of a checkpoint file from one layout to another."""

from __future__ import annotations

from pathlib import Path

from upvit_mm.checkpoints.io import load_classifier, save_checkpoint
from upvit_mm.checkpoints.keys import LAYOUTS, from_ours
from upvit_mm.files import sha256_of

TARGETS = ('ours', 'timm')
HEAD = 'head.fc.'  # as an mmpretrain classifier names its linear head


def convert_file(source: Path, target: Path, to: str = 'ours', prefix: str | None = None) -> Path:
    """Write the backbone, and the linear head if there is one, of a checkpoint in another layout.

    Args:
        source: checkpoint in any known layout.
        target: file to write: ``{'state_dict': ..., 'meta': ...}``.
        to: ``'ours'`` (``backbone.*`` and ``head.fc.*``, as an mmpretrain classifier has them) or ``'timm'``.
        prefix: what stands before the backbone's keys; None finds ``backbone.`` or nothing by itself.

    Returns:
        ``target``.

    Raises:
        FileNotFoundError: no such source.
        ValueError: unreadable, an unknown layout, or widths that the target layout cannot hold.
    """
    if to not in TARGETS:
        raise ValueError(f'to = {to!r}: must be one of {", ".join(TARGETS)}.')
    state = load_classifier(source, prefix)
    if to == 'timm':
        backbone = {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}
        family = 'deit' if 'cls_token' in backbone else 'pvtv2'
        layout = next(x for x in LAYOUTS if x.name.startswith('timm') and x.family == family)
        head = {f'head.{k.removeprefix(HEAD)}': v for k, v in state.items() if k.startswith(HEAD)}
        state = from_ours(backbone, layout) | head
    return save_checkpoint(target, state, tool='convert_checkpoint', source=str(source), sha256=sha256_of(source))
