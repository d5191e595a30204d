"""Scores of all channels by one method, in one process and in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.criteria import Criterion
from upvit_mm.pruning.dims import prunable_dims
from upvit_mm.pruning.importance import POSTERIOR, Scores, mean_scores
from upvit_mm.pruning.methods import Method
from upvit_mm.pruning.walk import Walk


def all_channels(arch: ArchSpec) -> dict[str, Tensor]:
    """Every channel of every dim."""
    return {name: torch.arange(dim.size) for name, dim in prunable_dims(arch).items()}


def scores_by(
    method: Method,
    net: Walk,
    state: Mapping[str, Tensor],
    batches: Iterable[Batch],
    settings: Mapping[str, Any],
    criterion: Criterion = POSTERIOR,
) -> Scores:
    """Scores by one method, in one process and in memory; without the second scoring near a cut, which needs a plan.

    Args:
        method: the method.
        net: the dense network that the criterion needs.
        state: its weights, see ``magnitude_scores``.
        batches: the proxy set.
        settings: values by name; the method reads those that it needs.
        criterion: what is measured, by a method that can choose.
    """
    own: dict[str, Any] = {name: settings[name] for name in method.settings}
    if method.criteria:
        own['criterion'] = criterion
    if not method.needs_images:
        return method.of_weights(net.backbone.arch, state, **own)
    channels = all_channels(net.backbone.arch)
    return mean_scores(net, batches, list(channels), partial(method.of_batch, channels=channels, **own))
