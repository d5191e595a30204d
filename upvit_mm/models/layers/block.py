"""Transformer block and stage (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from upvit_mm.arch.size import Grid
from upvit_mm.models.layers.attention import Attention
from upvit_mm.models.layers.patch_embed import PatchEmbed


class Block(nn.Module):
    """Pre-norm block: ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    Args:
        embed_dims: ``C``.
        attn: the attention of this block.
        mlp: the feed-forward network of this block.
        norm_eps: added to the variance in both norms.
        drop_path: probability, in [0, 1), that a branch is skipped for an image while training.
    """

    def __init__(self, embed_dims: int, attn: Attention, mlp: nn.Module, norm_eps: float, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.add_mlp(self.add_attn(x, grid), grid)

    def add_attn(self, x: Tensor, grid: Grid) -> Tensor:
        """The first half: tokens ``(B, P+N, C)`` plus their attention."""
        return x + self.drop_path(self.attn(self.norm1(x), grid))

    def add_mlp(self, x: Tensor, grid: Grid) -> Tensor:
        """The second half: tokens ``(B, P+N, C)`` plus the output of the feed-forward network."""
        return x + self.drop_path(self.mlp(self.norm2(x), grid))


class Stage(nn.Module):
    """Patch embedding, blocks and the norm after them; plain ViTs have one stage, PVTv2 four.

    Args:
        patch_embed: from the previous map to this stage's tokens.
        blocks: the blocks in order.
        embed_dims: ``C``.
        norm_eps: added to the variance in the norm.
        with_cp: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self, patch_embed: PatchEmbed, blocks: Sequence[Block], embed_dims: int, norm_eps: float, with_cp: bool
    ):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.with_cp = with_cp

    def run_block(self, index: int, x: Tensor, grid: Grid) -> Tensor:
        """Block ``index`` on tokens ``(B, P+N, C)``, recomputed later when ``with_cp``."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self.blocks[index], x, grid, use_reentrant=False)
        return self.blocks[index](x, grid)
