"""Simple feature pyramid: the maps a detector needs, from the one map of a plain ViT (arXiv 2203.16527, fig. 2c)."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from upvit_mm.models.layers.grid import outgoing
from upvit_mm.registry import MODELS


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """One stride-16 map to ``num_outs`` maps at strides ``4 * 2**start_level`` and up, at most 128.

    Strides 4 and 8 come from deconvolutions, those above 16 from max pooling; every level then has a 1x1 and a
    3x3 convolution, each with LayerNorm over channels. If the patch size is not 16, all strides scale by the same
    factor.

    Args:
        in_channels: channels of the backbone's map; a list of one number, as in ``arch.embed_dims``, is also accepted.
        out_channels: channels of every output map.
        num_outs: number of maps; 5 gives strides 4 to 64, or 8 to 128 with ``start_level=1``.
        start_level: 0 begins at stride 4 (Mask R-CNN), 1 at stride 8 (RetinaNet).
        inner_channels: twice the output channels of the first deconvolution; None = ``in_channels``. So a pruned
            detector can narrow its map and keep all else.
        init_cfg: mmengine's.

    Raises:
        ValueError: several input widths, or levels outside strides 4 to 128.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        start_level: int = 0,
        inner_channels: int | None = None,
        init_cfg=None,
    ):
        super().__init__(init_cfg=init_cfg)
        widths = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        if len(widths) != 1:
            raise ValueError(
                f'in_channels = {widths}: a simple feature pyramid has one input map; give a pyramid backbone an FPN.'
            )
        if start_level not in (0, 1, 2) or not 1 <= num_outs <= 6 - start_level:
            raise ValueError(
                f'start_level = {start_level}, num_outs = {num_outs}: levels are strides 4 to 128, so start_level is '
                'at most 2 and start_level + num_outs at most 6.'
            )
        self.levels = nn.ModuleList()
        for level in range(start_level, start_level + num_outs):
            scaling, dim = _scaling(widths[0], inner_channels or widths[0], level)
            self.levels.append(
                nn.Sequential(*scaling, *_conv_norm(dim, out_channels, 1), *_conv_norm(out_channels, out_channels, 3))
            )

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One map ``(B, C, H, W)`` in a sequence -> maps ``(B, out_channels, ...)``, finest first."""
        assert len(feats) == 1, f'the backbone returned {len(feats)} maps, not one'
        return tuple(outgoing(level(feats[0])) for level in self.levels)


def _scaling(dim: int, inner: int, level: int) -> tuple[list[nn.Module], int]:
    """Layers from a stride-16 map of ``dim`` channels to stride ``4 * 2**level``, and the channels they give."""
    halve = nn.ConvTranspose2d(dim, inner // 2, 2, stride=2)
    if level == 0:
        quarter = nn.ConvTranspose2d(inner // 2, inner // 4, 2, stride=2)
        return [halve, LayerNorm2d(inner // 2), nn.GELU(), quarter], inner // 4
    if level == 1:
        return [halve], inner // 2
    return [nn.MaxPool2d(2, ceil_mode=True) for _ in range(level - 2)], dim


def _conv_norm(source: int, target: int, kernel_size: int) -> list[nn.Module]:
    conv = nn.Conv2d(source, target, kernel_size, padding=kernel_size // 2, bias=False)
    return [conv, LayerNorm2d(target)]
