"""A backbone as a chain of half blocks: it can keep every activation, and start again from any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from upvit_mm.arch.size import Grid
from upvit_mm.pruning.dims import PrunableDim

Place = tuple[int, int]  # stage, and the block after which tokens are read
Reads = Mapping[Place, tuple[Tensor, Grid]]  # tokens (B, P+N, C) and their grid, by place


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


class Walk(nn.Module):
    """A backbone in evaluation mode; a subclass says what is read from it.

    Args:
        backbone: one of ours; the walk through its stages is its own.
        head: what a subclass puts after it, or None.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear | None = None):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.eval()

    @property
    def places(self) -> tuple[Place, ...]:
        """Where tokens are read, from the front to the end; nothing after the last one runs."""
        raise AssertionError('a subclass says what it reads')

    def outputs(self, reads: Reads) -> Any:
        """What the network gives, from the tokens at the places that were passed."""
        raise AssertionError('a subclass says what it gives')

    def forward(self, images: Tensor) -> Any:
        """Outputs of images ``(B, 3, h, w)``."""
        return self.resume(Entry(0), images, None)

    def activations(self, images: Tensor) -> tuple[dict[Entry, tuple[Tensor, Grid | None]], Any]:
        """The activation at every entry, and the outputs.

        Returns:
            By entry, the image or map ``(B, c, y, x)`` (``half`` -1) or tokens ``(B, P+N, C)``, with the token grid;
            and the outputs.
        """
        passed: dict[Entry, tuple[Tensor, Grid | None]] = {}
        outputs = self.resume(Entry(0), images, None, passed)
        return passed, outputs

    def resume(self, entry: Entry, x: Tensor, grid: Grid | None, passed: dict | None = None) -> Any:
        """Outputs from the activation at an entry; places before it are missing in them.

        Args:
            entry: the place of ``x``.
            x: as ``activations`` gives it.
            grid: token grid, None for an image or map.
            passed: if given, it is filled with the activations at all later entries.
        """
        reads: dict[Place, tuple[Tensor, Grid]] = {}
        places, first = self.places, entry.half
        for i in range(entry.stage, places[-1][0] + 1):
            if first < 0:
                _keep(passed, Entry(i), x, None)
                x, grid = self.backbone.enter_stage(i, x)
            depth, ends = len(self.backbone.stages[i].blocks), places[-1][0] == i
            halves = 2 * (places[-1][1] + 1) if ends else 2 * depth
            for half in range(max(first, 0), halves):
                _keep(passed, Entry(i, half), x, grid)
                x = self._run_half(i, half, x, grid, whole=passed is not None)
                if half % 2 and half + 1 < 2 * depth and (i, half // 2) in places:
                    reads[i, half // 2] = x, grid
            if halves == 2 * depth:
                _keep(passed, Entry(i, halves), x, grid)
                x, first = self.backbone.leave_stage(i, x), -1
                if (i, depth - 1) in places:
                    reads[i, depth - 1] = x, grid
            if not ends:
                x = self.backbone.to_map(x, grid)  # (B, C, H, W)
        return self.outputs(reads)

    def _run_half(self, i: int, half: int, x: Tensor, grid: Grid, whole: bool) -> Tensor:
        """Half a block; ``whole``: on all tokens, even where the outputs depend only on some."""
        block = self.backbone.stages[i].blocks[half // 2]
        return block.add_mlp(x, grid) if half % 2 else block.add_attn(x, grid)


def _keep(passed: dict | None, entry: Entry, x: Tensor, grid: Grid | None) -> None:
    if passed is not None:
        passed[entry] = (x, grid)
