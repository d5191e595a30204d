"""Settings of a backbone in a config, checked before it is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from upvit_mm.registry import MODELS, class_of, families_of, scope_of, type_name

NOT_ARGUMENTS = ('type', '_scope_')


def check_backbone_settings(cfg: Mapping[str, Any]) -> None:
    """Refuse settings that one of our backbones does not know.

    Most are those of the backbone that an inherited config has: mmengine merges dicts by key, so ``depth`` of a ResNet
    stays where ``_delete_=True`` is forgotten.

    Args:
        cfg: of mmdet or mmpretrain; other backbones pass.

    Raises:
        ValueError: names of the unknown settings, those that are known, and what to write.
    """
    model = cfg.get('model') or {}
    settings = model.get('backbone') or {}
    kind, scope = settings.get('type'), scope_of(cfg)
    if not families_of(kind, scope):
        return
    accepted: dict[str, inspect.Parameter] = {}
    for base in class_of(kind, MODELS, scope).__mro__:
        own = dict(inspect.signature(base.__init__).parameters) if '__init__' in vars(base) else {}
        accepted = own | accepted
        if own and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            break  # it passes nothing on to its bases
    known = [name for name in accepted if name not in ('self', 'args', 'kwargs')]
    unknown = [name for name in settings if name not in (*known, *NOT_ARGUMENTS)]
    if unknown:
        raise ValueError(
            f'model.backbone has {", ".join(unknown)}, which {type_name(kind)} does not know (it knows '
            f'{", ".join(known)}). If they come from an inherited config, write backbone=dict(_delete_=True, '
            f'type={kind!r}, ...): without _delete_ its settings stay.'
        )
