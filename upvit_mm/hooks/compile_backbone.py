"""Training with a compiled backbone."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from upvit_mm.hooks.unwrapped import model_of
from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class CompileBackbone(Hook):
    """The backbone of a training runs compiled by ``torch.compile``; neck, heads and losses run eagerly.

    mmengine's own setting (``compile=True``) compiles the whole training step. In a detector that is many small graphs,
    because assigners and losses depend on data, and each is compiled again for new sizes. A backbone is one graph,
    and at most four serve all sizes of a multi-scale training. Validation runs eagerly: it has other sizes, and hooks
    that read a layer's outputs are seen.

    Args:
        **settings: of ``torch.compile``, such as ``backend`` and ``mode``. With ``dynamic=True`` the first graph serves
            all sizes; by default the second one does.
    """

    def __init__(self, **settings: Any):
        self.settings = settings
        self._compiled: Any = None

    def before_train(self, runner: Runner) -> None:
        model_of(runner).backbone.compile(**self.settings)

    def before_val(self, runner: Runner) -> None:
        backbone = model_of(runner).backbone
        self._compiled, backbone._compiled_call_impl = backbone._compiled_call_impl, None

    def after_val(self, runner: Runner) -> None:
        if self._compiled is not None:  # None where only validation runs
            model_of(runner).backbone._compiled_call_impl = self._compiled
