"""Plain ViTs with free widths: DeiT (arXiv 2012.12877), DINOv2 (2304.07193, 2309.16588), DINOv3 (2508.10104).

What differs between them is in ``ArchSpec`` and ``Family``. Shape legend: ``layers/__init__.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from upvit_mm.arch.size import Grid, Windows
from upvit_mm.models.backbones.base import UPBackbone, stage_modules
from upvit_mm.models.layers import (
    Attention,
    Block,
    Mlp,
    PatchEmbed,
    Rotary,
    Stage,
    SwiGlu,
    WindowedAttention,
    resize_pos_embed,
)
from upvit_mm.models.layers.grid import outgoing
from upvit_mm.registry import MODELS

OUT_TYPES = ('featmap', 'cls_token')


@MODELS.register_module()
class UPViT(UPBackbone):
    """Plain vision transformer of family ``deit``, ``dinov2`` or ``dinov3``; one stage, at the stride of its patches.

    Args:
        arch: a name of ``upvit_mm.arch.arch_names``, the path of an ``arch.json``, or a mapping.
        out_type: ``'featmap'``: maps ``(B, C, H, W)`` for detectors; ``'cls_token'``: ``(B, C)`` for classifiers.
        out_indices: blocks whose output is returned; the last one passes the final norm. Modules after the last index
            never run and are not trained.
        window_size: side in tokens of the windows of the non-global blocks; 0 = every block is global.
        global_blocks: blocks that attend globally when ``window_size`` is set; None = four, evenly spread, including
            the last (arXiv 2203.16527, sec. 3).
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        frozen_stages: -1 nothing; 0 prefix tokens, positions and patch embedding; k those and the first k blocks.
        with_cp: recompute blocks in the backward pass: less memory, about a third more time.
        norm_eval: ignored with a warning, see ``UPBackbone``.
        init_cfg: see ``UPBackbone``.

    Raises:
        ValueError: unknown or invalid arch, another family, or a setting out of range.
    """

    families = ('deit', 'dinov2', 'dinov3')

    def __init__(
        self,
        arch,
        out_type: str = 'featmap',
        out_indices: Sequence[int] = (-1,),
        window_size: int = 0,
        global_blocks: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        norm_eval: bool = False,
        init_cfg=None,
    ):
        super().__init__(arch, frozen_stages, norm_eval, init_cfg)
        depth = self.arch.depths[0]
        if out_type not in OUT_TYPES:
            raise ValueError(f'out_type = {out_type!r}: must be one of {", ".join(OUT_TYPES)}.')
        if not -1 <= frozen_stages <= depth:
            raise ValueError(f'frozen_stages = {frozen_stages}: must lie in -1 to {depth}, the depth.')
        self.out_type = out_type
        self.out_indices = self.check_indices('out_indices', out_indices, depth)
        self.windows = Windows(window_size, global_blocks)
        if not self.windows and global_blocks is not None:
            warnings.warn(
                f'global_blocks = {tuple(global_blocks)} is ignored: without window_size every block is global.',
                stacklevel=2,
            )
        sides = self.windows.sizes(depth)

        embed_dims = self.arch.embed_dims[0]
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dims))
        registers = self.arch.num_registers
        self.reg_token = nn.Parameter(torch.empty(1, registers, embed_dims)) if registers else None
        self.pos_embed_grid = grid = (self.arch.pos_embed_grid,) * 2
        places = 1 + grid[0] * grid[1]  # the class token has one, registers have none
        self.pos_embed = None if self.arch.kind.rotary else nn.Parameter(torch.empty(1, places, embed_dims))
        rates = self.drop_path_rates(drop_path_rate)[0]
        blocks = [self._build_block(j, rates[j], sides[j]) for j in range(depth)]
        patch_size = self.arch.patch_size
        patch_embed = PatchEmbed(self.arch.in_channels, embed_dims, patch_size, patch_size, norm=False)
        self.stages = nn.ModuleList([Stage(patch_embed, blocks, embed_dims, self.arch.kind.norm_eps, with_cp)])
        self.reset_parameters()
        self.freeze()

    def _build_block(self, j: int, drop_path: float, window_size: int) -> Block:
        arch = self.arch
        embed_dims = arch.embed_dims[0]
        num_heads, qk_dim = arch.num_heads[0][j], arch.qk_dims[0][j]
        settings = dict(
            embed_dims=embed_dims,
            num_heads=num_heads,
            qk_dim=qk_dim,
            v_dim=arch.v_dims[0][j],
            scale=arch.qk_scales[0][j],
            rotary=Rotary(qk_dim, num_heads, self.num_prefix_tokens) if arch.kind.rotary else None,
            key_bias=arch.kind.key_bias,
        )
        if window_size:
            attn = WindowedAttention(window_size, self.num_prefix_tokens, **settings)
        else:
            attn = Attention(**settings)
        hidden = arch.mlp_hidden_dims[0][j]
        mlp = SwiGlu(embed_dims, hidden) if arch.ffn == 'swiglu' else Mlp(embed_dims, hidden, dwconv=False)
        return Block(embed_dims, attn, mlp, arch.kind.norm_eps, drop_path)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for parameter in self._own_parameters():
            trunc_normal_(parameter, std=0.02)

    def _own_parameters(self) -> list[nn.Parameter]:
        """Class token, registers and positions, as far as there are any."""
        return [p for p in (self.cls_token, self.reg_token, self.pos_embed) if p is not None]

    def _reset_conv(self, conv: nn.Conv2d) -> None:
        conv.reset_parameters()  # torch's default, as in the authors' code

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        if self.frozen_stages < 0:
            return []
        return [*self._own_parameters(), *stage_modules(self.stages[0], self.frozen_stages)]

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        return tuple((0, j) for j in self.out_indices)

    def blocks_in_use(self) -> Sequence[int]:
        return [self.out_indices[-1] + 1]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Image ``(B, 3, h, w)`` -> per index a map ``(B, C, ceil(h/p), ceil(w/p))`` or a vector ``(B, C)``.

        ``p`` is the patch size. An incomplete patch at the right or bottom edge is filled with zeros.

        Raises:
            ValueError: a side below the patch size, or a wrong number of channels.
        """
        self.check_image(x)
        tokens, grid = self.enter_stage(0, x)
        outs = []
        for j in range(self.out_indices[-1] + 1):
            tokens = self.run_block(0, j, tokens, grid)
            if self.is_returned(j):
                out = self.leave_stage(0, tokens) if j == self.arch.depths[0] - 1 else tokens
                outs.append(self.read(out) if self.out_type == 'cls_token' else outgoing(self.to_map(out, grid)))
        return tuple(outs)

    def enter_stage(self, i: int, x: Tensor) -> tuple[Tensor, Grid]:
        tokens, grid = super().enter_stage(i, x)
        prefix = self.cls_token
        if self.pos_embed is not None:
            places = resize_pos_embed(self.pos_embed, self.pos_embed_grid, grid, num_prefix_tokens=1)
            prefix, tokens = prefix + places[:, :1], tokens + places[:, 1:]
        if self.reg_token is not None:
            prefix = torch.cat([prefix, self.reg_token], dim=1)
        return torch.cat([prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1), grid  # (B, P+N, C)


@MODELS.register_module()
class UPDeiT(UPViT):
    """``UPViT`` for any ArchSpec of family ``deit``."""

    families = ('deit',)
