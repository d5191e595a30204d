"""The architecture that a checkpoint file states, and its comparison with the one that is built.

No tensor shows heads, logit scales or strides: a network with other values loads without a mismatch and gives wrong
results.
"""

from __future__ import annotations

import ast
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.arch.family import FAMILIES

logger = logging.getLogger('upvit_mm')

WIDTHS = ('family', 'embed_dims', 'depths', 'qk_dims', 'v_dims', 'mlp_hidden_dims')  # tensors show all of them
TOLD = ('num_heads', 'qk_scales', 'sr_ratios', 'strides')  # equal tensors can belong to different values
READ = ('type', 'arch', 'num_heads', 'embed_dims', 'strides', 'patch_cfg')  # of the backbone in a config
# heads of mmpretrain's named architectures that are as wide as ours
MMPRETRAIN_HEADS = dict.fromkeys(('deit-t', 'deit-tiny'), 3) | dict.fromkeys(('deit-s', 'deit-small'), 6)
MMPRETRAIN_HEADS |= dict.fromkeys(('deit-b', 'deit-base', 'b', 'base'), 12) | dict.fromkeys(('l', 'large'), 16)
MMPRETRAIN_HEADS |= dict.fromkeys(('dinov2-s', 'dinov2-small'), 6) | dict.fromkeys(('dinov2-g', 'dinov2-giant'), 24)


def check_arch_of(content: Mapping[str, Any], arch: ArchSpec, path: object) -> None:
    """Refuse a file that states another architecture than the one that is built.

    It compares heads, logit scales, spatial reduction and strides with ``meta.arch``, or with the config that mmengine
    keeps in ``meta.cfg``. A file without either passes. A file of other widths passes too: its tensors will not fit.

    Args:
        content: content of the file.
        arch: the architecture that is built.
        path: of the file, for messages.

    Raises:
        ValueError: the field, both values, and what to do.
    """
    for source, theirs in _sources(content, arch):
        for field, value in theirs.items():
            if difference := _difference(value, getattr(arch, field), field):
                where, there, here = difference
                raise ValueError(
                    f'checkpoint {str(path)!r} is of another network than arch {arch.name or "custom"}: {where} = '
                    f'{there} in {source}, {here} in the arch that is built. No tensor shows it, and results would be '
                    'wrong: use the arch.json that was written beside the checkpoint, or the checkpoint of this arch.'
                )


def known_arch(content: Mapping[str, Any]) -> ArchSpec | None:
    """The architecture that a file states for one of our networks, in ``meta.arch`` or in its config; None without."""
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    backbone = _backbone_of(meta)
    ours = {family.backbone for family in FAMILIES.values()}
    named = backbone.get('arch') if _kind(backbone) in ours else None
    for arch in (meta.get('arch'), named):
        if isinstance(arch, Mapping) or (isinstance(arch, str) and not arch.endswith('.json')):
            try:
                return resolve_arch(arch)
            except ValueError as error:
                logger.debug('the architecture in the file cannot be read: %s', error)
    return None


# --------------------------------------------------------------------- sources


def _sources(content: Mapping[str, Any], arch: ArchSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """The source and the values of fields of ``TOLD`` in a file whose widths are those of ``arch``."""
    if (spec := known_arch(content)) is not None:
        if all(getattr(spec, field) == getattr(arch, field) for field in WIDTHS):
            yield "the file's own arch", {field: getattr(spec, field) for field in TOLD}
        return
    meta = content.get('meta')
    backbone = _backbone_of(meta if isinstance(meta, Mapping) else {})
    try:
        told = _foreign(backbone, arch)
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        logger.debug('the backbone in the config of the file cannot be read: %s', error)
        told = {}
    if told:
        yield f"the file's config ({_kind(backbone)})", told


def _foreign(backbone: Mapping[str, Any], arch: ArchSpec) -> dict[str, Any]:
    """Fields of a backbone of mmpretrain or mmdet that has the widths of ``arch``; nothing for others."""
    if any(w != c for dims in (arch.qk_dims, arch.v_dims) for c, stage in zip(arch.embed_dims, dims) for w in stage):
        return {}
    if _kind(backbone) not in arch.kind.upstream:
        return {}
    if not arch.kind.is_pyramid:
        named = backbone.get('arch', 'base')
        if isinstance(named, str):
            heads, width = MMPRETRAIN_HEADS.get(named.lower()), arch.embed_dims[0]
        else:
            heads, width = named['num_heads'], named['embed_dims']
        if heads is None or width != arch.embed_dims[0]:
            return {}
        stride = backbone.get('patch_cfg', {}).get('stride', arch.patch_size)
        return _per_block([heads], arch) | {'strides': (stride,)}
    heads, strides = backbone.get('num_heads', [1, 2, 5, 8]), backbone.get('strides', [4, 2, 2, 2])
    if [backbone.get('embed_dims', 64) * h for h in heads] != list(arch.embed_dims):
        return {}
    return _per_block(heads, arch) | {'strides': tuple(math.prod(strides[: i + 1]) for i in range(len(strides)))}


def _per_block(heads: Sequence[int], arch: ArchSpec) -> dict[str, Any]:
    """Heads by stage as fields of an arch, with the usual logit scale."""
    stages = list(zip(heads, arch.embed_dims, arch.depths))
    return {
        'num_heads': tuple((h,) * depth for h, _, depth in stages),
        'qk_scales': tuple(((width / h) ** -0.5,) * depth for h, width, depth in stages),
    }


def _kind(backbone: Mapping[str, Any]) -> str:
    return str(backbone.get('type')).rpartition('.')[2]


# -------------------------------------------------------------- a config's text


def _backbone_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the backbone from the config text in a file, read without running it; empty if there is none."""
    for text in (meta.get('cfg'), meta.get('config')):
        if isinstance(text, str):
            try:
                return _read_backbone(ast.parse(text))
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                logger.debug('the config in the file cannot be read: %s', error)
    return {}


def _read_backbone(module: ast.Module) -> dict[str, Any]:
    models = [node.value for node in module.body if isinstance(node, ast.Assign) and _names(node) == ['model']]
    if not models:
        return {}
    items = _items(models[-1])
    items = _items(items['detector']) if 'detector' in items else items  # semi-supervised: teacher = student
    if 'backbone' not in items:
        return {}
    backbone = _items(items['backbone'])
    return {key: _literal(backbone[key]) for key in READ if key in backbone}


def _names(assign: ast.Assign) -> list[str | None]:
    return [target.id if isinstance(target, ast.Name) else None for target in assign.targets]


def _items(node: ast.expr) -> dict[str, ast.expr]:
    """The settings of ``dict(a=...)`` or ``{'a': ...}``, not evaluated.

    Raises:
        ValueError: another expression, or settings whose names are computed.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        keys, values = [word.arg for word in node.keywords], [word.value for word in node.keywords]
    elif isinstance(node, ast.Dict):
        keys, values = [getattr(key, 'value', None) for key in node.keys], node.values
    else:
        keys, values = [None], []
    if all(isinstance(key, str) for key in keys):
        return dict(zip(keys, values))
    raise ValueError(f'line {node.lineno} is no dict of settings')


def _literal(node: ast.expr) -> Any:
    """The value of an expression of constants, lists and dicts.

    Raises:
        ValueError: it contains anything else.
    """
    if isinstance(node, (ast.Call, ast.Dict)):
        return {key: _literal(value) for key, value in _items(node).items()}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(value) for value in node.elts]
    return ast.literal_eval(node)


# ------------------------------------------------------------------ comparison


def _difference(theirs: Any, ours: Any, where: str) -> tuple[str, Any, Any] | None:
    """The first place at which two nested values differ, and both values there; None when they are equal."""
    if isinstance(theirs, Sequence) and isinstance(ours, Sequence) and len(theirs) == len(ours):
        parts = (_difference(a, b, f'{where}[{i}]') for i, (a, b) in enumerate(zip(theirs, ours)))
        return next((part for part in parts if part), None)
    if isinstance(theirs, float) and isinstance(ours, float):
        return None if math.isclose(theirs, ours, rel_tol=1e-6) else (where, f'{theirs:.6g}', f'{ours:.6g}')
    return None if theirs == ours else (where, theirs, ours)
