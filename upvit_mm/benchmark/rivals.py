"""The same network in timm and mmdet, with the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import LAYOUTS, from_ours
from upvit_mm.models import build_backbone


def build_backbones(arch: ArchSpec, rivals: Sequence[str]) -> dict[str, nn.Module]:
    """Our backbone and its rivals, with equal weights; each gives a list of maps ``(B, C_i, H_i, W_i)`` from an image.

    Args:
        arch: an architecture of the stock structure (one width per stage, equal q, k and v).
        rivals: of ``'timm'`` and ``'mmdet'``.

    Returns:
        ``'ours'`` and each rival by name, in eval mode.

    Raises:
        ValueError: an unknown rival, or one that cannot build this architecture.
    """
    ours = build_backbone(arch)
    models: dict[str, nn.Module] = {'ours': ours}
    for name in rivals:
        if (arch.family, name) not in _BUILDERS:
            known = ', '.join(rivals_of(arch.family))
            raise ValueError(f'against = {name!r}: has no {arch.family} backbone; known for it: {known}.')
        _require_stock(arch, name)
        model, layout = _BUILDERS[arch.family, name](arch)
        weights = from_ours(ours.state_dict(), next(x for x in LAYOUTS if x.name == layout))
        target = model.model if isinstance(model, _TimmMaps) else model
        target.load_state_dict(weights)
        models[name] = model
    return {name: model.eval() for name, model in models.items()}


def rivals_of(family: str) -> list[str]:
    """Names of the rivals that have a backbone of this family."""
    return [name for known, name in _BUILDERS if known == family]


def _require_stock(arch: ArchSpec, rival: str) -> None:
    for i, dim in enumerate(arch.embed_dims):
        widths = {*arch.qk_dims[i], *arch.v_dims[i]}
        same = len(set(arch.num_heads[i])) == len(set(arch.mlp_hidden_dims[i])) == len(set(arch.qk_scales[i])) == 1
        same = same and math.isclose(arch.qk_scales[i][0], (dim / arch.num_heads[i][0]) ** -0.5)
        if widths != {dim} or not same or arch.mlp_hidden_dims[i][0] % dim:
            raise ValueError(
                f'arch {arch.name or "custom"!r}: stage {i} has pruned widths, which {rival} cannot build; '
                'compare a stock architecture.'
            )


class _TimmMaps(nn.Module):
    """A network of timm without its head, which returns maps like ours."""

    def __init__(self, model: nn.Module, maps: Callable[[nn.Module, Tensor], list[Tensor]]):
        super().__init__()
        self.model = model
        self.maps = maps

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.maps(self.model, x)


def _timm_pvtv2(arch: ArchSpec) -> tuple[nn.Module, str]:
    model = PyramidVisionTransformerV2(num_classes=0, **_pvtv2_settings(arch), depths=arch.depths)
    return _TimmMaps(model, _pyramid_maps), 'timm PVTv2'


def _pyramid_maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    maps, x = [], model.patch_embed(x)
    for stage in model.stages:
        x = stage(x)
        maps.append(x)
    return maps


def _mmdet_pvtv2(arch: ArchSpec) -> tuple[nn.Module, str]:
    from mmdet.models import PyramidVisionTransformerV2 as MMDetPVTv2

    return MMDetPVTv2(**mmdet_pvtv2_settings(arch)), 'mmdet PVTv2'


def mmdet_pvtv2_settings(arch: ArchSpec) -> dict:
    """Keyword arguments of mmdet's ``PyramidVisionTransformerV2`` for an architecture of the stock structure.

    Raises:
        ValueError: widths that it cannot build.
    """
    settings = _pvtv2_settings(arch) | {'embed_dims': arch.embed_dims[0] // arch.num_heads[0][0]}
    if any(dim != settings['embed_dims'] * h[0] for dim, h in zip(arch.embed_dims, arch.num_heads)):
        raise ValueError(f'arch {arch.name or "custom"!r}: mmdet builds only embed_dims in the ratio of num_heads.')
    return dict(num_layers=arch.depths, **settings)


def _pvtv2_settings(arch: ArchSpec) -> dict:
    return dict(
        embed_dims=arch.embed_dims,
        num_heads=tuple(h[0] for h in arch.num_heads),
        mlp_ratios=tuple(m[0] // dim for m, dim in zip(arch.mlp_hidden_dims, arch.embed_dims)),
        sr_ratios=arch.sr_ratios,
    )


def _timm_deit(arch: ArchSpec) -> tuple[nn.Module, str]:
    dim = arch.embed_dims[0]
    model = VisionTransformer(
        img_size=arch.img_size,
        patch_size=arch.patch_size,
        embed_dim=dim,
        depth=arch.depths[0],
        num_heads=arch.num_heads[0][0],
        mlp_ratio=arch.mlp_hidden_dims[0][0] / dim,
        num_classes=0,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
    return _TimmMaps(model, _plain_map), 'timm / official DeiT'


def _plain_map(model: nn.Module, x: Tensor) -> list[Tensor]:
    rows = -(-x.shape[2] // model.patch_embed.patch_size[0])
    tokens = model.forward_features(x)[:, 1:]  # (B, N, C)
    return [tokens.transpose(1, 2).unflatten(2, (rows, -1))]


_BUILDERS: dict[tuple[str, str], Callable[[ArchSpec], tuple[nn.Module, str]]] = {
    ('pvtv2', 'timm'): _timm_pvtv2,
    ('pvtv2', 'mmdet'): _mmdet_pvtv2,
    ('deit', 'timm'): _timm_deit,
}
