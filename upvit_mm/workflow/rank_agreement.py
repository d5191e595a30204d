"""How far the ranks of scores from a lower precision agree with those from float32."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from typing import Any

from scipy.stats import spearmanr

from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.methods import Method
from upvit_mm.pruning.scoring import all_channels
from upvit_mm.pruning.walk import Walk

logger = logging.getLogger('upvit_mm')
LEAST = 0.95  # below it the log warns
MIN_CHANNELS = 3  # two have only one order


def rank_agreement(method: Method, net: Walk, batch: Batch, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Score a batch in both precisions, with the same signs.

    Args:
        method: it reads ``amp``.
        net: the dense network.
        batch: images; few of them are enough, because noise is the same in both.
        settings: what the method takes, ``amp`` among it.

    Returns:
        ``amp``, the number of ``images``, ``lowest`` and ``median``: Spearman's rank correlations of the dims.
    """
    channels = all_channels(net.backbone.arch)
    lower = dict(method.of_batch(net, batch, channels, **settings))
    full = dict(method.of_batch(net, batch, channels, **{**settings, 'amp': None}))
    wide = [name for name in full if len(full[name]) >= MIN_CHANNELS and full[name].min() < full[name].max()]
    found = {name: float(spearmanr(full[name], lower[name]).statistic) for name in wide}
    agreement = {'amp': settings['amp'], 'images': len(batch.images)}
    agreement |= {'lowest': min(found.values()), 'median': statistics.median(found.values())}
    logger.info(text_of(agreement))
    if not agreement['lowest'] >= LEAST:
        worst = min(found, key=found.__getitem__)
        logger.warning('%s has a rank correlation of only %.3f; score it without amp', worst, found[worst])
    return agreement


def text_of(agreement: Mapping[str, Any]) -> str:
    """The result of ``rank_agreement`` in one sentence."""
    return (
        f'{agreement["amp"]}: on the first {agreement["images"]} images the rank correlation with float32 (Spearman) '
        f'is {agreement["lowest"]:.4f} in the worst dim, {agreement["median"]:.4f} in the median.'
    )
