"""The classifier that is scored: from images to class logits."""

from __future__ import annotations

from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.pruning.walk import Place, Reads, Walk


class PosteriorNet(Walk):
    """A backbone with its linear head.

    The head reads the class token or the mean over tokens, depending on the family, as in mmpretrain's classifiers.

    Args:
        backbone: one of ours.
        head: from the last embedding to the classes.

    Raises:
        ValueError: the head reads another width than the backbone's last embedding.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear):
        width = backbone.arch.embed_dims[-1]
        if head.in_features != width:
            raise ValueError(f'head reads {head.in_features} channels: the last embedding of the backbone has {width}.')
        super().__init__(backbone, head)

    @property
    def places(self) -> tuple[Place, ...]:
        depths = self.backbone.arch.depths
        return ((len(depths) - 1, depths[-1] - 1),)

    def outputs(self, reads: Reads) -> Tensor:
        """Logits ``(B, classes)``."""
        ((tokens, _),) = reads.values()
        return self.head(self.backbone.read(tokens))

    def _run_half(self, i: int, half: int, x: Tensor, grid: Grid, whole: bool) -> Tensor:
        last = (i, half // 2) == self.places[0] and half % 2
        if last and self.backbone.arch.kind.reads_class_token and not whole:
            x = x[:, :1]  # after the last attention the logits depend only on the class token
        return super()._run_half(i, half, x, grid, whole)
