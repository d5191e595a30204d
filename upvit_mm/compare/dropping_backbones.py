"""Backbones that drop tokens inside a detector, so that the rival can be trained like all others.

A config names this module in ``custom_imports``. Weights have the names of the dense backbone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from upvit_mm.arch import resolve_arch
from upvit_mm.arch.size import Size
from upvit_mm.compare.token_dropping import PVTv2Dropping, TokenDropping, ViTDropping
from upvit_mm.models import UPPVTv2, UPViT
from upvit_mm.registry import MODELS


class DroppingBackbone:
    """Mixin of a backbone of ours: its maps are those of a ``TokenDropping`` of itself.

    Args:
        keep_rate: see ``TokenDropping``; a pruned network is given as its ``arch.json``, name or mapping. In pictures
            so small that one token is more than 1 % of the cost, the nearest cost counts.
        fill: see ``TokenDropping``.
        start: see ``TokenDropping``.
        **settings: settings of the backbone.

    Raises:
        ValueError: see ``TokenDropping``.
    """

    dropping: type[TokenDropping]

    def __init__(self, *, keep_rate: Any, fill: str = 'last', start: int | Sequence[int] | None = None, **settings):
        super().__init__(**settings)
        rate = keep_rate if isinstance(keep_rate, (int, float)) else resolve_arch(keep_rate, self.families)
        wrapper = self.dropping(self, rate, fill, start)
        wrapper.tolerance = math.inf  # a detector meets pictures of any size, also small ones with few tokens
        object.__setattr__(self, '_dropping', wrapper)  # no submodule: it holds this backbone
        self.train()  # a TokenDropping is made for evaluation

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """See ``ViTDropping.forward`` and ``PVTv2Dropping.forward``."""
        self._dropping.out_indices = self.out_indices
        return self._dropping.forward(x)

    def macs(self, size: Size) -> int:
        """See ``TokenDropping.macs``."""
        return self._dropping.macs(size)


@MODELS.register_module()
class DroppingViT(DroppingBackbone, UPViT):
    """``UPViT`` that drops patches, see ``ViTDropping``."""

    dropping = ViTDropping


@MODELS.register_module()
class DroppingPVTv2(DroppingBackbone, UPPVTv2):
    """``UPPVTv2`` that drops tokens, see ``PVTv2Dropping``."""

    dropping = PVTv2Dropping
