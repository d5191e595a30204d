"""PVTv2 with free widths (arXiv 2106.13797; shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from upvit_mm.models.backbones.base import UPBackbone, stage_modules
from upvit_mm.models.layers import Attention, Block, Mlp, PatchEmbed, Stage
from upvit_mm.models.layers.grid import outgoing
from upvit_mm.registry import MODELS


@MODELS.register_module()
class UPPVTv2(UPBackbone):
    """Pyramid of four stages at strides 4, 8, 16, 32, for any ArchSpec of family ``pvtv2``.

    Args:
        arch: ``'pvtv2-b0'`` ... ``'pvtv2-b5'``, the path of an ``arch.json``, or a mapping.
        out_indices: stages that are returned, 0 to 3. Stages after the last of them never run and are not trained.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        frozen_stages: -1 nothing; 0 the first patch embedding; k the first k stages.
        with_cp: recompute blocks in the backward pass: less memory, about a third more time.
        norm_eval: ignored with a warning, see ``UPBackbone``.
        init_cfg: see ``UPBackbone``.

    Raises:
        ValueError: unknown or invalid arch, another family, an index or rate out of range.
    """

    families = ('pvtv2',)

    def __init__(
        self,
        arch,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        norm_eval: bool = False,
        init_cfg=None,
    ):
        super().__init__(arch, frozen_stages, norm_eval, init_cfg)
        if not -1 <= frozen_stages <= 4:
            raise ValueError(f'frozen_stages = {frozen_stages}: must lie in -1 to 4.')
        self.out_indices = self.check_indices('out_indices', out_indices, 4)
        rates = self.drop_path_rates(drop_path_rate)
        self.stages = nn.ModuleList(self._build_stage(i, rates[i], with_cp) for i in range(4))
        self.reset_parameters()
        self.freeze()

    def _build_stage(self, i: int, rates: Sequence[float], with_cp: bool) -> Stage:
        arch = self.arch
        embed_dims = arch.embed_dims[i]
        source = arch.embed_dims[i - 1] if i else arch.in_channels
        blocks = [
            Block(
                embed_dims,
                Attention(
                    embed_dims,
                    arch.num_heads[i][j],
                    arch.qk_dims[i][j],
                    arch.v_dims[i][j],
                    arch.qk_scales[i][j],
                    arch.sr_ratios[i],
                ),
                Mlp(embed_dims, arch.mlp_hidden_dims[i][j], dwconv=True),
                arch.kind.norm_eps,
                rates[j],
            )
            for j in range(arch.depths[i])
        ]
        patch_embed = PatchEmbed(source, embed_dims, arch.patch_kernels[i], arch.patch_strides[i], norm=True)
        return Stage(patch_embed, blocks, embed_dims, arch.kind.norm_eps, with_cp)

    def frozen_modules(self) -> Iterable[nn.Module]:
        if self.frozen_stages == 0:
            return [self.stages[0].patch_embed]
        frozen = self.stages[: max(self.frozen_stages, 0)]
        return [m for stage in frozen for m in stage_modules(stage, len(stage.blocks))]

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        return tuple((i, self.arch.depths[i] - 1) for i in self.out_indices)

    def blocks_in_use(self) -> Sequence[int]:
        return [depth if i <= self.out_indices[-1] else 0 for i, depth in enumerate(self.arch.depths)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Image ``(B, 3, h, w)`` -> one map ``(B, C_i, ceil(h/s_i), ceil(w/s_i))`` per index in ``out_indices``.

        Raises:
            ValueError: a side below 32 pixels, or a wrong number of channels.
        """
        self.check_image(x)
        outs = []
        for i in range(self.out_indices[-1] + 1):  # not a slice of the stages: torch 2.4 cannot compile it
            tokens, grid = self.enter_stage(i, x)
            for j in range(self.arch.depths[i]):
                tokens = self.run_block(i, j, tokens, grid)
            x = self.to_map(self.leave_stage(i, tokens), grid)
            if self.is_returned(i):
                outs.append(outgoing(x))
        return tuple(outs)
