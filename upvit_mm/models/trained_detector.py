"""Load a trained detector: all of its tensors must be there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from upvit_mm.checkpoints import check_arch_of, check_state, is_harmless, model_state
from upvit_mm.pruning.table import BACKBONE


def model_settings(cfg: Config) -> ConfigDict:
    """A config's model as its runner builds it: with the config's ``data_preprocessor`` where it has none."""
    model = copy.deepcopy(cfg.model)  # some detectors of mmdet change their settings
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return model


def load_trained(detector: nn.Module, content: Mapping[str, Any], path: str) -> None:
    """Give a detector its trained weights, in place.

    Args:
        detector: of mmdet, with one of our backbones as ``backbone``.
        content: content of the checkpoint; the backbone may have any layout that ``upvit_mm.checkpoints`` knows.
        path: of the checkpoint, for messages.

    Raises:
        ValueError: the file is of another architecture, or has not exactly the detector's tensors.
    """
    check_arch_of(content, detector.backbone.arch, path)
    own = detector.state_dict()
    state = model_state(content, own, {BACKBONE: detector.backbone.arch}, path)
    state = {k: v for k, v in state.items() if k in own or not is_harmless(k, extra=True)}
    state |= {k: v for k, v in own.items() if k not in state and is_harmless(k, extra=False)}
    if absent := sorted({key.partition('.')[0] for key in own} - {key.partition('.')[0] for key in state}):
        raise ValueError(
            f'checkpoint {path!r} has no tensors of {", ".join(absent)}: a whole trained detector is '
            'needed, with its neck and heads. A backbone alone is pruned with the config of its classifier.'
        )
    check_state(state, own, f'the detector of the config (checkpoint={path})')
    detector.load_state_dict(state)
