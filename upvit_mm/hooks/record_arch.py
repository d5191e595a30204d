"""Checkpoints of a training that say which architecture they are of."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from upvit_mm.hooks.unwrapped import model_of
from upvit_mm.models.backbones.base import UPBackbone
from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class RecordArch(Hook):
    """Writes the backbone's arch into ``meta.arch``: heads and logit scales are in no tensor.

    The config that mmengine keeps may name a file that has changed since.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = model_of(runner)
        archs = {module.arch for module in model.modules() if isinstance(module, UPBackbone)}
        if len(archs) == 1:
            checkpoint['meta']['arch'] = archs.pop().to_dict()
