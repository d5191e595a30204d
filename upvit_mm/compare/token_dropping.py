"""The rival: a dense network made cheaper by dropping tokens, with its features put back on the grid.

Nothing is trained. Both wrappers give the maps of the backbone that they wrap and replace it in ``compare`` and
``contrast``. (Shape legend: ``upvit_mm/models/layers/__init__.py``; ``n`` tokens so far, ``k`` of them stay.)

Dropped places can be filled in three ways: with ``'zeros'``; with the kept token that is ``'nearest'`` on the grid; or
with the ``'last'`` value of the dropped token. SViT (arXiv 2306.07050) found that detectors need this (tokens should be
preserved in the feature maps), so it is the strongest rival.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Grid, Size
from upvit_mm.choices import FILLS
from upvit_mm.compare.dropping_costs import TOLERANCE, drop_layers, dropping_macs, kept_tokens, rate_for_macs
from upvit_mm.compare.kept_tokens import KeptTokens, take
from upvit_mm.models import UPPVTv2, UPViT
from upvit_mm.models.layers import Attention, Block
from upvit_mm.models.layers.attention import scaled_attention
from upvit_mm.models.layers.grid import map_to_tokens, outgoing, tokens_to_map
from upvit_mm.models.layers.windows import WindowedAttention
from upvit_mm.models.network import Network
from upvit_mm.pruning.costs import count_macs

logger = logging.getLogger('upvit_mm')


class TokenDropping(nn.Module):
    """Base of the two wrappers.

    Args:
        backbone: the dense one; shared, not copied.
        keep_rate: share of tokens in (0, 1] that stay at each dropping; or the ArchSpec of a pruned network: then the
            share at which both have the same MACs, at any image size.
        fill: values at dropped places when the features become a grid again, one of ``FILLS``.
        start: place of the dropping, see the subclass; None for its default.

    Raises:
        ValueError: a setting out of range, or a backbone that the subclass does not know.
    """

    wraps: type[nn.Module]
    tolerance = TOLERANCE  # of the cost of a pruned network, see ``rate_for_macs``

    def __init__(self, backbone: nn.Module, keep_rate: float | ArchSpec, fill: str = 'zeros', start=None):
        super().__init__()
        if not isinstance(backbone, self.wraps):
            raise ValueError(f'backbone = {type(backbone).__name__}: must be {self.wraps.__name__}.')
        if fill not in FILLS:
            raise ValueError(f'fill = {fill!r}: must be one of {", ".join(FILLS)}.')
        if not isinstance(keep_rate, ArchSpec) and not 0 < keep_rate <= 1:
            raise ValueError(f'keep_rate = {keep_rate}: must be above 0 and at most 1.')
        self.backbone, self.keep_rate, self.fill = backbone, keep_rate, fill
        self.arch, self.out_indices = backbone.arch, backbone.out_indices
        self.start = self._check_start(start)
        self._starts = [self.start] if start is not None else self._earlier(self.start)
        self._settings: dict[Size, tuple] = {}
        self.eval()

    def macs(self, size: Size) -> int:
        """Multiply-accumulates of one image of ``(height, width)`` pixels."""
        start, rate = self.setting_at(size)
        return dropping_macs(self.arch, size, rate, start, self.backbone.windows)

    def setting_at(self, size: Size) -> tuple:
        """Where tokens are dropped in an image of ``(height, width)`` pixels, and the share of them that stays.

        The place is ``start``; by default the last one that is early enough for the pruned network's MACs.

        Raises:
            ValueError: the pruned network's MACs cannot be met there, see ``rate_for_macs``.
        """
        if not isinstance(self.keep_rate, ArchSpec):
            return self.start, self.keep_rate
        if size not in self._settings:
            windows = self.backbone.windows
            macs = count_macs(self.keep_rate, size, windows=windows)
            in_reach = (s for s in self._starts if dropping_macs(self.arch, size, 0.0, s, windows) <= macs)
            start = next(in_reach, self._starts[-1])
            rate = rate_for_macs(self.arch, size, macs, start, self.tolerance, windows)
            if (least := dropping_macs(self.arch, size, 0.0, start, windows)) > macs * (1 + TOLERANCE):
                logger.warning(
                    f'token dropping costs {least} MACs at {size[0]}x{size[1]}, where {macs} are wanted: it cannot be '
                    'cheaper there, so this is no comparison at equal costs.'
                )
            self._settings[size] = start, rate
        return self._settings[size]

    def _earlier(self, start) -> Sequence:
        """The default and earlier places, the last one first."""
        return [start]

    def _check_start(self, start):
        raise AssertionError('a subclass defines where it drops tokens')


class ViTDropping(TokenDropping):
    """Drop the patches with the lowest attention of the class token, as in EViT (arXiv 2202.07800).

    In each block of ``start``, between attention and feed-forward network, the patches with the highest attention of
    the class token stay (mean over heads). By default these are the blocks after a quarter, half and three quarters of
    the depth (3, 6 and 9 of 12, as in the paper). Where a pruned network costs less than can be reached so, all of them
    are as many blocks earlier as it takes (at a quarter of the MACs of a ViT-S: 2, 5 and 8). In a backbone with
    windows, the patches that stay attend to those of them that are in their window.

    Note:
        EViT fuses the dropped tokens into one more token, and fine-tunes. Here there is no such token, because it has
        no place on the grid; and the weights do not change, like those of a one-shot pruning.
    """

    wraps = UPViT

    def _check_start(self, start: Sequence[int] | None) -> tuple[int, ...]:
        if self.arch.kind.rotary:
            raise ValueError(f'{self.arch.family}: queries and keys turn with their place, so no token can be dropped.')
        depth = self.arch.depths[0]
        blocks = drop_layers(depth) if start is None else tuple(sorted(start))
        if not blocks or not 0 <= blocks[0] <= blocks[-1] < depth:
            raise ValueError(f'start = {blocks}: must be one or more blocks of 0 to {depth - 1}.')
        return blocks

    def _earlier(self, start: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
        return [tuple(block - moved for block in start) for moved in range(start[0] + 1)]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Image ``(B, 3, h, w)`` -> per index in ``out_indices`` a map ``(B, C, ceil(h/16), ceil(w/16))``."""
        self.backbone.check_image(images)
        stage, (start, rate) = self.backbone.stages[0], self.setting_at(tuple(images.shape[-2:]))
        tokens, grid = self.backbone.enter_stage(0, images)  # (B, P+N, C)
        prefix = self.backbone.num_prefix_tokens
        places = torch.arange(grid[0] * grid[1], device=images.device).expand(len(images), -1)  # (B, n)
        last, outs = tokens[:, prefix:], []  # (B, N, C): every patch as it was when it was dropped
        for j, block in enumerate(stage.blocks[: self.out_indices[-1] + 1]):
            attended = tokens + block.drop_path(attention_of_kept(block.attn, block.norm1(tokens), places, grid))
            if j in start:
                last = KeptTokens.on(grid, places, 'last').spread(attended[:, prefix:], last)
                chosen = best(class_attention(block.attn, block.norm1(tokens), prefix), rate)  # (B, k)
                attended = torch.cat([attended[:, :prefix], take(attended[:, prefix:], chosen)], dim=1)
                places = places.gather(1, chosen)
            tokens = block.add_mlp(attended, grid)
            if j in self.out_indices:
                final = j == len(stage.blocks) - 1
                here, there = (self.backbone.leave_stage(0, t) if final else t for t in (tokens[:, prefix:], last))
                kept = KeptTokens.on(grid, places, self.fill)
                spread = kept.spread(here, there if self.fill == 'last' else None)  # (B, N, C)
                outs.append(outgoing(tokens_to_map(spread, grid)))
        return tuple(outs)


class PVTv2Dropping(TokenDropping):
    """Drop the tokens nearest to the mean token at the start of a stage; PVTv2 has no class token.

    In each stage from ``start`` on (default 0), tokens are ranked by their distance to the image's mean token. The
    distance is taken after the convolution of the patch embedding and before its LayerNorm, which would make all norms
    equal. (The norm itself, SparseViT's measure, arXiv 2303.17605, was no better than chance on digits; the distance
    was.) Only kept tokens pass through the blocks of the stage, as queries and in the feed-forward networks. The
    convolutions of spatial reduction, the depth-wise filters and the next patch embedding read the filled grid. Reduced
    keys and values come from the whole grid, others from kept tokens.

    Note:
        The hidden features of dropped tokens are never computed, so with ``'last'`` the depth-wise filters read zeros
        at their places. ``macs`` counts these filters at kept places; this code runs them everywhere and uses only the
        kept places.
    """

    wraps = UPPVTv2

    def _check_start(self, start: int | None) -> int:
        start = 0 if start is None else start
        if not 0 <= start < self.arch.num_stages:
            raise ValueError(f'start = {start}: must be a stage of 0 to {self.arch.num_stages - 1}.')
        return start

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Image ``(B, 3, h, w)`` -> one map ``(B, C_i, ceil(h/s_i), ceil(w/s_i))`` per index in ``out_indices``."""
        self.backbone.check_image(images)
        (start, rate), x, outs = self.setting_at(tuple(images.shape[-2:])), images, []
        for i, stage in enumerate(self.backbone.stages[: self.out_indices[-1] + 1]):
            embedded, grid = stage.patch_embed.project(x)  # (B, N, C)
            distance = (embedded - embedded.mean(dim=1, keepdim=True)).norm(dim=2)  # (B, N)
            chosen = best(distance, rate if i >= start else 1.0)
            kept = KeptTokens.on(grid, chosen, self.fill)
            entered = stage.patch_embed.norm(embedded)  # (B, N, C)
            last, tokens = entered if self.fill == 'last' else None, kept.take(entered)  # (B, k, C)
            for block in stage.blocks:
                tokens = _pvtv2_block(block, tokens, kept, last, grid)
            left = None if last is None else self.backbone.leave_stage(i, last)
            x = self.backbone.to_map(kept.spread(self.backbone.leave_stage(i, tokens), left), grid)
            if i in self.out_indices:
                outs.append(outgoing(x))
        return tuple(outs)


def drop_tokens(dense: Network, keep_rate: float | ArchSpec, fill: str = 'zeros', start=None) -> Network:
    """The network with token dropping; see ``TokenDropping``, ``ViTDropping`` and ``PVTv2Dropping``.

    Raises:
        ValueError: token dropping is not known for this backbone; see ``TokenDropping``.
    """
    wrapper = next((w for w in (ViTDropping, PVTv2Dropping) if isinstance(dense.backbone, w.wraps)), None)
    if wrapper is None:
        raise ValueError(
            f'backbone = {type(dense.backbone).__name__}: token dropping is known for UPDeiT, UPViT and UPPVTv2 only.'
        )
    return replace(dense, backbone=wrapper(dense.backbone, keep_rate, fill, start))


def best(score: Tensor, rate: float) -> Tensor:
    """Sorted indices of the highest scores ``(B, n)`` of each image: ``(B, k)``."""
    return score.topk(kept_tokens(rate, score.shape[1]), dim=1).indices.sort(dim=1).values


def attention_of_kept(attn: Attention, x: Tensor, places: Tensor, grid: Grid) -> Tensor:
    """Attention of a plain ViT to the tokens that are left, within their windows if it has windows.

    Args:
        attn: the attention.
        x: ``(B, P+n, C)``.
        places: places on the grid of the ``n`` patches, ``(B, n)``.
        grid: height and width in tokens of the whole image.

    Returns:
        ``(B, P+n, C)``.
    """
    if places.shape[1] == grid[0] * grid[1]:
        return attn(x, grid)
    mask = None
    if isinstance(attn, WindowedAttention) and attn.window_size < max(grid):
        rows, columns = places // grid[1] // attn.window_size, places % grid[1] // attn.window_size
        window = rows * grid[1] + columns  # (B, n)
        prefix = attn.num_prefix_tokens
        mask = x.new_ones(len(x), 1, x.shape[1], x.shape[1], dtype=torch.bool)  # prefix tokens see and are seen
        mask[:, 0, prefix:, prefix:] = window[:, :, None] == window[:, None, :]
    q, k, v = attn.project(x, x)
    return attn.proj(scaled_attention(q, k, v, attn.scale, mask).transpose(1, 2).flatten(2))


def class_attention(attn: Attention, x: Tensor, prefix: int) -> Tensor:
    """Attention of the class token to each patch, mean over heads: ``(B, prefix+n, C)`` -> ``(B, n)``."""
    query = attn.q(x[:, :1]).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)  # (B, h, 1, K/h)
    keys = attn.k(x).unflatten(2, (attn.num_heads, -1)).permute(0, 2, 3, 1)  # (B, h, K/h, prefix+n)
    weights = (attn.scale * query @ keys).softmax(dim=-1)  # (B, h, 1, prefix+n)
    return weights.mean(dim=1)[:, 0, prefix:]


def _pvtv2_block(block: Block, tokens: Tensor, kept: KeptTokens, last: Tensor | None, grid: Grid) -> Tensor:
    """Run a block on the kept tokens ``(B, k, C)``; ``last``: all tokens ``(B, N, C)`` at the start of the stage."""
    attn, mlp = block.attn, block.mlp
    x = block.norm1(tokens)
    source = x
    if attn.sr is not None:
        whole = kept.spread(x, None if last is None else block.norm1(last))  # (B, N, C)
        source = attn.sr_norm(map_to_tokens(attn.sr(tokens_to_map(whole, grid))))  # (B, M, C)
    q, k, v = (
        layer(t).unflatten(2, (attn.num_heads, -1)).transpose(1, 2)  # (B, h, n, d)
        for layer, t in ((attn.q, x), (attn.k, source), (attn.v, source))
    )
    tokens = tokens + attn.proj(attn.mix(q, k, v, grid).transpose(1, 2).flatten(2))
    hidden = mlp.fc1(block.norm2(tokens))  # (B, k, F)
    hidden = kept.take(map_to_tokens(mlp.dwconv(tokens_to_map(kept.spread(hidden), grid))))
    return tokens + mlp.fc2(mlp.act(hidden))
