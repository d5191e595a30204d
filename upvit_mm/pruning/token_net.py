"""The network that a detector's neck reads: from images to the tokens of the backbone's maps."""

from __future__ import annotations

from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.pruning.walk import Place, Reads, Walk

ReadTokens = list[tuple[Tensor, Grid]]  # (B, N, C) without prefix tokens, and their grid; one for each map


class TokenNet(Walk):
    """A backbone without a head, which gives the tokens of all maps that it returns.

    Args:
        backbone: one of ours; its ``out_indices`` say what is read, its windows where tokens attend.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__(backbone)

    @property
    def places(self) -> tuple[Place, ...]:
        return self.backbone.places

    def outputs(self, reads: Reads) -> ReadTokens:
        """Tokens by map, as the neck gets them."""
        prefix = self.backbone.num_prefix_tokens
        return [(reads[place][0][:, prefix:], reads[place][1]) for place in self.places if place in reads]
