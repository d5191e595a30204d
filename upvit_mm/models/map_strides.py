"""The strides that a config's heads name, against those of the pyramid that they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from upvit_mm.arch import resolve_arch
from upvit_mm.registry import MODELS, families_of, is_type, scope_of

KEYS = ('strides', 'featmap_strides')  # of anchors and points, and of regions


def check_strides(cfg: Mapping[str, Any]) -> None:
    """Refuse heads whose strides are not those of their maps: mmdet would misplace every anchor, without a message.

    The strides of a ``SimpleFeaturePyramid`` follow the patch size of the plain ViT before it.

    Args:
        cfg: of mmdet or mmpretrain; models without such a pyramid pass.

    Raises:
        ValueError: the setting, its strides, and those of the maps.
    """
    model, scope = cfg.get('model') or {}, scope_of(cfg)
    backbone, neck = model.get('backbone') or {}, model.get('neck') or {}
    families = families_of(backbone.get('type'), scope)
    if not families or not isinstance(neck, Mapping) or backbone.get('arch') is None:
        return
    if not is_type(neck.get('type'), 'SimpleFeaturePyramid', registry=MODELS, scope=scope):
        return
    patch_size = resolve_arch(backbone['arch'], families).patch_size
    strides = pyramid_strides(patch_size, neck.get('start_level', 0), neck.get('num_outs', 5))
    for place, found in _strides_in(model, 'model'):
        if found != strides[: len(found)]:
            raise ValueError(
                f'{place} = {found}: the maps of a backbone with patches of {patch_size} pixels have the strides '
                f'{strides}; write {strides[: len(found)]}.'
            )


def pyramid_strides(patch_size: int, start_level: int, num_outs: int) -> list[float]:
    """Pixels from one place to the next, for each map of a ``SimpleFeaturePyramid`` with these settings."""
    exact = [patch_size * 2.0 ** (level - 2) for level in range(start_level, start_level + num_outs)]
    return [int(stride) if stride.is_integer() else stride for stride in exact]


def _strides_in(settings: Any, place: str) -> Iterator[tuple[str, list[float]]]:
    """The strides of every head in a model's settings, with their place."""
    if isinstance(settings, (list, tuple)):
        for k, part in enumerate(settings):
            yield from _strides_in(part, f'{place}[{k}]')
    elif isinstance(settings, Mapping):
        for name, value in settings.items():
            if name in KEYS and isinstance(value, Sequence) and all(isinstance(v, (int, float)) for v in value):
                yield f'{place}.{name}', list(value)
            elif name not in ('backbone', 'neck'):
                yield from _strides_in(value, f'{place}.{name}')
