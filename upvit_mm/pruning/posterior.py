"""The classifier that is scored: from images to class logits; it can start in the middle of the network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.pruning.dims import PrunableDim


@dataclass(frozen=True, order=True)
class Entry:
    """A place of the forward pass.

    Attributes:
        stage: 0, ...
        half: -1 before the stage's patch embedding, 2j before the attention of block j, 2j + 1 before its feed-forward
            network, twice the depth before the stage's norm.
    """

    stage: int
    half: int = -1

    @classmethod
    def of(cls, dim: PrunableDim) -> Entry:
        """The last place before all layers that a gate of the dim changes."""
        if dim.block is None:
            return cls(dim.stage)
        return cls(dim.stage, 2 * dim.block + (dim.kind == 'mlp_hidden'))


class PosteriorNet(nn.Module):
    """A backbone with its linear head, in evaluation mode.

    The head reads the class token or the mean over tokens, depending on the family, as in mmpretrain's classifiers.

    Args:
        backbone: one of ours; the walk through its stages is its own.
        head: from the last embedding to the classes; None for a backbone alone, which gives features instead of logits.

    Raises:
        ValueError: the head reads another width than the backbone's last embedding.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear | None):
        super().__init__()
        width = backbone.arch.embed_dims[-1]
        if head is not None and head.in_features != width:
            raise ValueError(f'head reads {head.in_features} channels: the last embedding of the backbone has {width}.')
        self.backbone = backbone
        self.head = head
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, h, w)`` -> logits ``(B, classes)``."""
        return self.resume(Entry(0), images, None)

    def activations(self, images: Tensor) -> tuple[dict[Entry, tuple[Tensor, Grid | None]], Tensor]:
        """The activation at every entry, and the logits.

        Returns:
            By entry, the image or map ``(B, c, y, x)`` (``half`` -1) or tokens ``(B, P+N, C)``, with the token grid;
            and logits ``(B, classes)``.
        """
        passed: dict[Entry, tuple[Tensor, Grid | None]] = {}
        logits = self.resume(Entry(0), images, None, passed)
        return passed, logits

    def resume(self, entry: Entry, x: Tensor, grid: Grid | None, passed: dict | None = None) -> Tensor:
        """Logits ``(B, classes)`` from the activation at an entry.

        Args:
            entry: the place of ``x``.
            x: as ``activations`` gives it.
            grid: token grid, None for an image or map.
            passed: if given, it is filled with the activations at all later entries.
        """
        stages = self.backbone.stages
        first = entry.half
        for i in range(entry.stage, len(stages)):
            if first < 0:
                if passed is not None:
                    passed[Entry(i)] = (x, None)
                x, grid = self.backbone.enter_stage(i, x)
            for half in range(max(first, 0), 2 * len(stages[i].blocks)):
                if passed is not None:
                    passed[Entry(i, half)] = (x, grid)
                x = self._run_half(i, half, x, grid, whole=passed is not None)
            if passed is not None:
                passed[Entry(i, 2 * len(stages[i].blocks))] = (x, grid)
            x, first = self.backbone.leave_stage(i, x), -1
            if i + 1 < len(stages):
                x = self.backbone.to_map(x, grid)  # (B, C, H, W)
        features = self.backbone.read(x)
        return features if self.head is None else self.head(features)

    def _run_half(self, i: int, half: int, x: Tensor, grid: Grid, whole: bool) -> Tensor:
        blocks = self.backbone.stages[i].blocks
        block, last = blocks[half // 2], half == 2 * len(blocks) - 1
        if half % 2 == 0:
            return block.add_attn(x, grid)
        if last and self.backbone.arch.kind.reads_class_token and not whole:
            x = x[:, :1]  # after the last attention the logits depend only on the class token
        return block.add_mlp(x, grid)
