"""Child registries of mmengine's, so that ``type='upvit_mm.UPPVTv2'`` works in any mmdet or mmpretrain config."""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='upvit_mm', locations=['upvit_mm.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='upvit_mm', locations=['upvit_mm.hooks'])


def type_name(kind: str | type) -> str:
    """A config's ``type``, a name or a class, without its scope or module."""
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]
