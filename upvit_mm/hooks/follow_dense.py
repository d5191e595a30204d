"""Train a pruned detector with the dense one as teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from upvit_mm.checkpoints import read_checkpoint
from upvit_mm.hooks.unwrapped import model_of
from upvit_mm.models.losses import map_distance
from upvit_mm.models.own_backbone import own_backbone
from upvit_mm.models.trained_detector import load_trained, model_settings
from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class FollowDense(Hook):
    """Add a term to the losses of a detector: how far the maps that its heads read are from those of a dense one.

    The term ``loss_tokens`` is ``loss_weight`` times the ``map_distance`` of the maps: those of the neck, or without a
    neck those of the backbone. The maps of the model are the ones of its own forward pass. The dense detector gets the
    same batch, after preprocessing and augmentation. It is in evaluation mode, has no gradients, and belongs to the
    hook: the model, its checkpoints, its optimizer and its averages are the same as without the hook.

    Note:
        Each process has its own dense detector, and measures its own batch. A dense detector that is still learning
        holds the model to what it is today (docs/evidence.md).

    Args:
        config: file of the dense detector's config; the backbone is one of ours, or one that ``own_backbone`` converts.
        checkpoint: its weights, neck and heads included.
        loss_weight: factor on the term; 10 was best in a small trial (docs/pruning.md).

    Raises:
        FileNotFoundError: at the start of a training: no such config or checkpoint.
        ValueError: ``loss_weight`` not above 0. At the start of a training: the model is no detector of mmdet, the two
            prepare pictures in different ways, or the checkpoint does not fit. In the first step: the maps have other
            sizes, or there is a second such hook.
    """

    priority = 'HIGH'  # before StopOnNonFiniteLoss, which looks at all terms

    def __init__(self, config: str, checkpoint: str, loss_weight: float = 10.0):
        if not loss_weight > 0:
            raise ValueError(
                f'FollowDense: loss_weight = {loss_weight}: must be above 0; to train without the dense detector, '
                'leave the hook out.'
            )
        self.config, self.checkpoint, self.loss_weight = config, checkpoint, loss_weight
        self._watches: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        from mmdet.models import BaseDetector

        model = model_of(runner)
        if not isinstance(model, BaseDetector):
            raise ValueError(
                f'FollowDense: model.type = {type(model).__name__}: must be a detector of mmdet; a classifier follows '
                'its dense network as upvit_mm.DistillClassifier.'
            )
        dense = self._build()
        self._check_pictures(model, dense)
        self._watch(model, dense.to(next(model.parameters()).device))
        runner.logger.info(f'loss_tokens: {self.loss_weight:g} x distance of the maps to those of {self.checkpoint}')

    def after_train(self, runner: Runner) -> None:
        for watch in self._watches:
            watch.remove()
        self._watches = []

    def _build(self) -> nn.Module:
        """The dense detector, which does not train."""
        from mmdet.registry import MODELS

        if not Path(self.config).is_file():
            raise FileNotFoundError(f"FollowDense: config {self.config!r} does not exist; give the dense detector's.")
        content = read_checkpoint(self.checkpoint)
        cfg = Config.fromfile(self.config)
        cfg.model.backbone = own_backbone(cfg.model.backbone, cfg.get('default_scope') or 'mmdet')
        with torch.random.fork_rng(devices=[]):  # the training goes on as without this hook
            dense = MODELS.build(model_settings(cfg))
        load_trained(dense, content, self.checkpoint)
        return dense.requires_grad_(False).eval()

    def _check_pictures(self, model: nn.Module, dense: nn.Module) -> None:
        for (name, ours), theirs in zip(_pictures(model).items(), _pictures(dense).values()):
            if ours != theirs:
                raise ValueError(
                    f'FollowDense: data_preprocessor {name} = {ours}, and {theirs} in the dense detector of '
                    f'{self.config!r}: it gets the batch of the model, so they must be the same. Use its settings.'
                )

    def _watch(self, model: nn.Module, dense: nn.Module) -> None:
        # local functions: copies of the model share them; methods would be copied with the hook and the dense detector
        weight, seen = self.loss_weight, []

        def keep(module: nn.Module, args, maps) -> None:
            if model.training:
                seen[:] = [maps]

        def add_term(module: nn.Module, args, kwargs, losses) -> dict | None:
            if kwargs.get('mode') != 'loss':
                return None
            assert seen, 'the detector did not run its neck'
            if 'loss_tokens' in losses:
                raise ValueError('FollowDense: custom_hooks has several; a detector follows one, leave out the others.')
            with torch.no_grad():
                wanted = dense.extract_feat(kwargs['inputs'])
            return {**losses, 'loss_tokens': weight * map_distance(seen.pop(), wanted)}

        reading = model.neck if model.with_neck else model.backbone
        self._watches = [
            reading.register_forward_hook(keep),
            model.register_forward_hook(add_term, with_kwargs=True),
        ]


def _pictures(detector: nn.Module) -> dict[str, Any]:
    """How a detector prepares the values of pictures."""
    preprocessor = detector.data_preprocessor
    mean, std = (getattr(preprocessor, name, None) for name in ('mean', 'std'))
    return {
        'mean': None if mean is None else mean.flatten().tolist(),
        'std': None if std is None else std.flatten().tolist(),
        'bgr_to_rgb': getattr(preprocessor, '_channel_conversion', False),
    }
