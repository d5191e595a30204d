"""Conversion of a checkpoint file from one layout to another."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints.contents import State
from upvit_mm.checkpoints.io import load_backbone, load_classifier, read_checkpoint, save_checkpoint
from upvit_mm.checkpoints.keys import LAYOUTS, from_ours
from upvit_mm.checkpoints.known_arch import known_arch
from upvit_mm.files import sha256_of

logger = logging.getLogger('upvit_mm')

TARGETS = ('ours', 'timm')
HEAD = 'head.fc.'  # names of the linear head of an mmpretrain classifier
KEEP = 'Keep it in our layout (--to ours).'


def convert_file(
    source: Path,
    target: Path,
    to: str = 'ours',
    prefix: str | None = None,
    weights: str | None = None,
    head: bool = True,
) -> Path:
    """Write the backbone, and the linear head if there is one, of a checkpoint in another layout.

    timm has no setting for the scale of attention logits. So the factor between a network's own scale and timm's goes
    into the weights and biases of q, and timm computes the same. The scale is read from ``meta.arch`` or from the
    config in the file.

    Args:
        source: checkpoint in any known layout.
        target: file to write: ``{'state_dict': ..., 'meta': ...}``, with ``meta.arch`` if the source has it.
        to: ``'ours'`` (``backbone.*`` and ``head.fc.*``, like an mmpretrain classifier) or ``'timm'``.
        prefix: the text before the backbone's keys; None finds it.
        weights: ``'ema'`` or ``'raw'`` where the file has both; None takes those that its maker evaluates.
        head: False leaves the head out.

    Returns:
        ``target``.

    Raises:
        FileNotFoundError: no such source.
        ValueError: unreadable, an unknown layout, a head with hidden layers, or heads or widths that the target layout
            cannot hold.
    """
    if to not in TARGETS:
        raise ValueError(f'to = {to!r}: must be one of {", ".join(TARGETS)}.')
    if head:
        state = load_classifier(source, prefix, weights)
    else:
        state = {f'backbone.{k}': v for k, v in load_backbone(source, prefix, weights).items()}
    arch = _arch_of(state, source)
    if to == 'timm':
        state, arch = _to_timm(state, arch, source)
    meta = {} if arch is None else {'arch': arch.to_dict()}
    return save_checkpoint(
        target, state, tool='convert_checkpoint', source=str(source), sha256=sha256_of(source), **meta
    )


def _arch_of(state: State, source: Path) -> ArchSpec | None:
    """The architecture that the source names, if its tensors match it."""
    arch = known_arch(read_checkpoint(source))
    if arch is None:
        return None
    shapes = {k: tuple(v.shape) for k, v in state.items() if k.endswith('.attn.q.weight')}
    named = {
        f'backbone.stages.{i}.blocks.{j}.attn.q.weight': (width, arch.embed_dims[i])
        for i, stage in enumerate(arch.qk_dims)
        for j, width in enumerate(stage)
    }
    if shapes == named:
        return arch
    logger.warning('%s: the architecture in it does not match these tensors, and is left out', source)
    return None


def _to_timm(state: State, arch: ArchSpec | None, source: Path) -> tuple[State, ArchSpec | None]:
    """A classifier's tensors in timm's layout, and their architecture."""
    backbone = {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}
    layout = next(x for x in LAYOUTS if x.name.startswith('timm') and x.holds(backbone))
    head = {f'head.{k.removeprefix(HEAD)}': v for k, v in state.items() if k.startswith(HEAD)}
    from_ours(backbone, layout)  # refuses q, k and v of different widths
    _check_widths(backbone)
    if arch is None:
        logger.warning(
            '%s: its architecture is not known; the usual scale of logits is used, (width of a head) ** -0.5', source
        )
    else:
        backbone, arch = _fold_scales(backbone, arch)
    return from_ours(backbone, layout) | head, arch


def _check_widths(backbone: State) -> None:
    """Refuse widths that timm's constructors cannot express: they have one embedding and one MLP ratio per stage."""
    hidden: dict[str, set[int]] = {}
    for key, tensor in backbone.items():
        if key.endswith('.attn.q.weight') and len(tensor) != tensor.shape[1]:
            raise ValueError(
                f'{key} has {len(tensor)} rows: in timm q, k and v have the width of the embedding, {tensor.shape[1]}. '
                f'{KEEP}'
            )
        if key.endswith('.mlp.fc1.weight'):
            hidden.setdefault(key.split('.')[1], set()).add(len(tensor))
    for stage, widths in hidden.items():
        if len(widths) > 1:
            raise ValueError(
                f'stage {stage} has hidden widths {sorted(widths)}: in timm all blocks of a stage have the same. {KEEP}'
            )


def _fold_scales(backbone: State, arch: ArchSpec) -> tuple[State, ArchSpec]:
    """The same network with the usual scale of logits: q is multiplied by the ratio of the two scales."""
    backbone = {k: v.clone() if '.attn.q.' in k else v for k, v in backbone.items()}
    usual = replace(arch, qk_scales=None)
    for i, heads in enumerate(arch.num_heads):
        if len(set(heads)) > 1:
            raise ValueError(f'num_heads[{i}] = {list(heads)}: in timm all blocks of a stage have the same. {KEEP}')
        for j, (scale, default) in enumerate(zip(arch.qk_scales[i], usual.qk_scales[i])):
            if not math.isclose(scale, default, rel_tol=1e-9):  # else q stays the same bit for bit
                for part in ('weight', 'bias'):
                    backbone[f'stages.{i}.blocks.{j}.attn.q.{part}'] *= scale / default
    return backbone, usual
