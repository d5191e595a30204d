"""Conversion of a checkpoint file from one layout to another."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from timm.layers import resample_patch_embed

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints.contents import State, find_backbone
from upvit_mm.checkpoints.io import backbone_of, classifier_of, read_checkpoint, save_checkpoint
from upvit_mm.checkpoints.keys import LAYOUTS, detect_layout, from_ours
from upvit_mm.checkpoints.known_arch import known_arch
from upvit_mm.checkpoints.steps import FREQUENCIES, KEEP
from upvit_mm.checkpoints.variants import CLASS, PATCHES, image_size
from upvit_mm.files import sha256_of

logger = logging.getLogger('upvit_mm')

TARGETS = ('ours', 'timm')
HEAD = 'head.fc.'  # names of the linear head of an mmpretrain classifier
# the end of a name that only this family has, as far as the rows before are ruled out; for files that do not say it
SIGNS = {FREQUENCIES: 'dinov3', 'reg_token': 'dinov2', '.mlp.gate.weight': 'dinov2', CLASS: 'deit', '': 'pvtv2'}


def convert_file(
    source: Path,
    target: Path,
    to: str = 'ours',
    prefix: str | None = None,
    weights: str | None = None,
    head: bool = True,
    patch_size: int | None = None,
) -> Path:
    """Write the backbone, and the linear head if there is one, of a checkpoint in another layout.

    timm has no setting for the scale of attention logits. So the factor between a network's own scale and timm's goes
    into the weights and biases of q, and timm computes the same. The scale is read from ``meta.arch`` or from the
    config in the file.

    Args:
        source: checkpoint in any known layout.
        target: file to write: ``{'state_dict': ..., 'meta': ...}``, with ``meta.arch`` if the source has it, else with
            ``meta.family``.
        to: ``'ours'`` (``backbone.*`` and ``head.fc.*``, like an mmpretrain classifier) or ``'timm'``.
        prefix: the text before the backbone's keys; None finds it.
        weights: ``'ema'`` or ``'raw'`` where the file has both; None takes those that its maker evaluates.
        head: False leaves the head out.
        patch_size: side in pixels of the patches to resample those of a plain ViT to; see ``resampled``.

    Returns:
        ``target``.

    Raises:
        FileNotFoundError: no such source.
        ValueError: unreadable, an unknown layout, a head with hidden layers, heads, widths or rotary frequencies that
            the target layout cannot hold, or ``patch_size`` below 1 or for a network without a class token.
    """
    if to not in TARGETS:
        raise ValueError(f'to = {to!r}: must be one of {", ".join(TARGETS)}.')
    content = read_checkpoint(source)
    place, stated = find_backbone(content, source, prefix, weights), known_arch(content)
    if head:
        state = classifier_of(place, source, stated)
    else:
        state = {f'backbone.{k}': v for k, v in backbone_of(place, source, stated).items()}
    arch = _if_its(stated, state, source)
    layout = detect_layout(place.backbone())
    meta = content.get('meta')
    said = meta.get('family') if isinstance(meta, dict) else None
    family = arch.family if arch else layout.family if layout else said or _family_of(state)
    if patch_size is not None:
        state, arch = resampled(state, arch, patch_size)
    if to == 'timm':
        state, arch = _to_timm(state, arch, family, source)
    about = {'family': family} if arch is None else {'arch': arch.to_dict()}
    return save_checkpoint(
        target, state, tool='convert_checkpoint', source=str(source), sha256=sha256_of(source), **about
    )


def resampled(state: State, arch: ArchSpec | None, patch_size: int) -> tuple[State, ArchSpec | None]:
    """A plain ViT for patches of another size, by resampling its kernels (FlexiViT, arXiv 2212.08013, sec. 3.4).

    Larger patches give the same tokens for images that are enlarged by the same factor, as far as bicubic resizing of
    patches one by one and of the image are the same. Smaller patches are a least-squares fit. The number of positions
    stays.

    Args:
        state: a classifier's tensors, with our names.
        arch: its architecture, if known.
        patch_size: side in pixels.

    Raises:
        ValueError: no plain ViT, or a side below 1.
    """
    key = f'backbone.{PATCHES}'
    if patch_size < 1:
        raise ValueError(f'patch_size = {patch_size}: must be at least 1 pixel.')
    if f'backbone.{CLASS}' not in state:
        raise ValueError(f'patch_size = {patch_size}: only patches of a plain ViT can be resampled, and this is none.')
    old = state[key].shape[-1]
    logger.warning('patches: resampled from %d to %d px, which is approximate: test or train it again', old, patch_size)
    state = state | {key: resample_patch_embed(state[key], [patch_size, patch_size])}
    if arch is None:
        size = image_size({k.removeprefix('backbone.'): v for k, v in state.items()})
        also = '' if size is None else f' and img_size={size}'
        logger.warning('patches: set patch_size=%d%s in the arch', patch_size, also)
        return state, None
    return state, replace(arch, patch_size=patch_size, img_size=arch.pos_embed_grid * patch_size, name='')


def _family_of(keys: Iterable[str]) -> str:
    keys = [*keys]
    return next(family for end, family in SIGNS.items() if any(key.endswith(end) for key in keys))


def _if_its(arch: ArchSpec | None, state: State, source: Path) -> ArchSpec | None:
    """The architecture that the source names, if its tensors match it."""
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


def _to_timm(state: State, arch: ArchSpec | None, family: str, source: Path) -> tuple[State, ArchSpec | None]:
    """A classifier's tensors in timm's layout, and their architecture."""
    backbone = {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}
    layout = next(x for x in LAYOUTS if x.name.startswith('timm') and x.family == family)
    head = {f'head.{k.removeprefix(HEAD)}': v for k, v in state.items() if k.startswith(HEAD)}
    from_ours(backbone, layout, arch)  # refuses what it cannot hold, as q, k and v of different widths
    _check_widths(backbone)
    if arch is None:
        logger.warning(
            '%s: its architecture is not known; the usual scale of logits is used, (width of a head) ** -0.5', source
        )
    else:
        backbone, arch = _fold_scales(backbone, arch)
    return from_ours(backbone, layout, arch) | head, arch


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
