"""Write the architecture into the checkpoints of a training."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from upvit_mm.hooks.unwrapped import model_of
from upvit_mm.models.backbones.base import UPBackbone
from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class RecordArch(Hook):
    """Write the backbone's arch to ``meta.arch``, because no tensor shows heads and logit scales.

    mmengine keeps the config, but that may name a file that has changed since then.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = model_of(runner)
        archs = {module.arch for module in model.modules() if isinstance(module, UPBackbone)}
        if len(archs) == 1:
            checkpoint['meta']['arch'] = archs.pop().to_dict()
