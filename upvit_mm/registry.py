"""Child registries of mmengine's, so that ``type='upvit_mm.UPPVTv2'`` works in any mmdet or mmpretrain config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import Registry

from upvit_mm.arch.family import FAMILIES

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='upvit_mm', locations=['upvit_mm.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='upvit_mm', locations=['upvit_mm.hooks'])
OPTIM_WRAPPERS = Registry(
    'optim_wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='upvit_mm', locations=['upvit_mm.optim']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='upvit_mm',
    locations=['upvit_mm.optim'],
)

SCOPES = ('mmdet', 'mmpretrain')
Kind: TypeAlias = 'str | type | LazyObject | LazyAttr | None'  # values of `type` in a config


def type_name(kind: Kind) -> str:
    """A config's ``type`` without its scope or module; empty if there is none."""
    if kind is None:
        return ''
    if isinstance(kind, (LazyObject, LazyAttr)):  # a new-style config imports its types when it is built
        kind = str(kind)
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', repr(kind))).rpartition('.')[2]


def class_of(kind: Kind, registry: Registry, scope: str | None = None) -> type | None:
    """The class that a config's ``type`` means.

    Args:
        kind: a name, with or without scope, a class, or a lazy import of a new-style config.
        registry: any registry of the tree that knows it, for example mmengine's ``DATASETS``.
        scope: scope for a name without one, the config's ``default_scope``; None = the current scope.

    Returns:
        The class, or None if the name is not registered or does not mean a class.
    """
    if isinstance(kind, (LazyObject, LazyAttr)):
        kind = kind.build()
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(scope) as found:
            try:
                kind = found.get(kind)
            except RuntimeError:  # one line of mmengine raises, the other returns None
                return None
    return kind if isinstance(kind, type) else None


def is_type(kind: Kind, *names: str, registry: Registry, scope: str | None = None) -> bool:
    """Whether a config's ``type`` is one of these classes or a subclass, in any way of writing it.

    Args:
        kind: see ``class_of``; None is never a match.
        names: names of the classes; their scopes are ignored.
        registry: see ``class_of``; it knows the class of an alias and of a subclass.
        scope: see ``class_of``.
    """
    wanted = set(map(type_name, names))
    if kind is None or type_name(kind) in wanted:
        return kind is not None
    found = class_of(kind, registry, scope)
    return found is not None and any(base.__name__ in wanted for base in found.__mro__)


def families_of(kind: Kind, scope: str | None = None) -> tuple[str, ...]:
    """Names of the families that a config's ``model.backbone.type`` builds; none for a backbone that is not ours.

    Args:
        kind: see ``class_of``; a subclass of one of our backbones counts too.
        scope: see ``class_of``.
    """
    backbones = (family.backbone for family in FAMILIES.values())
    ours = is_type(kind, *backbones, registry=MODELS, scope=scope)
    return class_of(kind, MODELS, scope).families if ours else ()


def require_families(field: str, kind: Kind) -> tuple[str, ...]:
    """``families_of``, but only backbones of ours are allowed.

    Raises:
        ValueError: it is not ours; the message has the field, its value and the known types.
    """
    if not (families := families_of(kind)):
        raise ValueError(f'{field} = {kind!r}: must be one of {backbone_types()}.')
    return families


def backbone_types() -> str:
    """The ``type`` values of our backbones, for messages."""
    return ', '.join(dict.fromkeys(f'upvit_mm.{family.backbone}' for family in FAMILIES.values()))


def scope_of(cfg: Mapping[str, Any]) -> str | None:
    """The package that a config belongs to: its ``default_scope`` or, for new-style configs, the package of the model's
    class.

    Returns:
        For example ``'mmdet'``; None if the config does not say.
    """
    if cfg.get('default_scope'):
        return cfg['default_scope']
    model = class_of((cfg.get('model') or {}).get('type'), MODELS)
    packages = [base.__module__.partition('.')[0] for base in getattr(model, '__mro__', ())]
    return next((package for package in packages if package in SCOPES), None)
