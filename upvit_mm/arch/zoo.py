"""The stock architectures: DeiT (arXiv 2012.12877, table 1), DINOv2 (arXiv 2304.07193, table 17; with registers arXiv
2309.16588), DINOv3 (arXiv 2508.10104, table 9) and PVTv2 (arXiv 2106.13797, table 1)."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from upvit_mm.arch.spec import ArchSpec


def _deit(name: str, embed_dim: int, num_heads: int) -> ArchSpec:
    return ArchSpec(
        name=name,
        family='deit',
        embed_dims=(embed_dim,),
        depths=(12,),
        num_heads=num_heads,
        mlp_hidden_dims=4 * embed_dim,
    )


def _dinov2(name: str, embed_dim: int, depth: int, num_heads: int, **others: Any) -> ArchSpec:
    shared = dict(family='dinov2', embed_dims=embed_dim, depths=depth, num_heads=num_heads, patch_size=14, img_size=518)
    return ArchSpec(name=name, **shared, **{'mlp_hidden_dims': 4 * embed_dim, **others})


def _dinov3(name: str, embed_dim: int, depth: int, num_heads: int, ffn: str = 'gelu') -> ArchSpec:
    return ArchSpec(
        name=name,
        family='dinov3',
        embed_dims=embed_dim,
        depths=depth,
        num_heads=num_heads,
        mlp_hidden_dims=4 * embed_dim,
        num_registers=4,
        ffn=ffn,
    )


GIANT = dict(mlp_hidden_dims=4096, ffn='swiglu')


def _pvtv2(name: str, width: int, depths: tuple[int, ...], expansion=(8, 8, 4, 4)) -> ArchSpec:
    embed_dims = (width, 2 * width, 5 * width, 8 * width)
    return ArchSpec(
        name=name,
        family='pvtv2',
        embed_dims=embed_dims,
        depths=depths,
        num_heads=(1, 2, 5, 8),
        mlp_hidden_dims=tuple(e * c for e, c in zip(expansion, embed_dims)),
        sr_ratios=(8, 4, 2, 1),
    )


_ZOO = {
    spec.name: spec
    for spec in (
        _deit('deit-tiny', 192, 3),
        _deit('deit-small', 384, 6),
        _deit('deit-base', 768, 12),
        _dinov2('dinov2-tiny', 192, 12, 3),
        _dinov2('dinov2-small', 384, 12, 6),
        _dinov2('dinov2-base', 768, 12, 12),
        _dinov2('dinov2-large', 1024, 24, 16),
        _dinov2('dinov2-giant', 1536, 40, 24, **GIANT),
        _dinov2('dinov2-small-reg', 384, 12, 6, num_registers=4),
        _dinov2('dinov2-base-reg', 768, 12, 12, num_registers=4),
        _dinov2('dinov2-large-reg', 1024, 24, 16, num_registers=4),
        _dinov2('dinov2-giant-reg', 1536, 40, 24, num_registers=4, **GIANT),
        _dinov3('dinov3-tiny', 192, 12, 3),
        _dinov3('dinov3-small', 384, 12, 6),
        _dinov3('dinov3-small-plus', 384, 12, 6, 'swiglu'),
        _dinov3('dinov3-base', 768, 12, 12),
        _dinov3('dinov3-large', 1024, 24, 16),
        _dinov3('dinov3-huge-plus', 1280, 32, 20, 'swiglu'),
        _pvtv2('pvtv2-b0', 32, (2, 2, 2, 2)),
        _pvtv2('pvtv2-b1', 64, (2, 2, 2, 2)),
        _pvtv2('pvtv2-b2', 64, (3, 4, 6, 3)),
        _pvtv2('pvtv2-b3', 64, (3, 4, 18, 3)),
        _pvtv2('pvtv2-b4', 64, (3, 8, 27, 3)),
        _pvtv2('pvtv2-b5', 64, (3, 6, 40, 3), expansion=(4, 4, 4, 4)),
    )
}


def arch_names() -> tuple[str, ...]:
    """Names that ``get_arch`` knows."""
    return tuple(_ZOO)


def get_arch(name: str) -> ArchSpec:
    """The stock architecture of that name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in _ZOO:
        own = Path(f'{name}.json')
        close = [str(own)] if own.is_file() else difflib.get_close_matches(name, _ZOO, n=1)
        hint = f' Did you mean {close[0]!r}?' if close else ''
        raise ValueError(
            f'arch = {name!r}: unknown name. Known: {", ".join(_ZOO)}; or give the path of an arch.json.{hint}'
        )
    return _ZOO[name]


def resolve_arch(arch: str | Path | Mapping[str, Any] | ArchSpec, families: Collection[str] = ()) -> ArchSpec:
    """The architecture of a config's ``arch=``: a stock name, the path of an ``arch.json``, or a mapping.

    Args:
        arch: any of the three, or an ``ArchSpec``, which is returned as it is.
        families: those that the result may have; none = any.

    Raises:
        ValueError: unknown name, invalid spec, or another family.
        FileNotFoundError: a path that does not exist.
    """
    if isinstance(arch, ArchSpec):
        spec = arch
    elif isinstance(arch, (str, Path)):
        spec = ArchSpec.from_json(arch) if str(arch).endswith('.json') else get_arch(str(arch))
    else:
        spec = ArchSpec.from_dict(arch)
    if families and spec.family not in families:
        raise ValueError(
            f'arch family = {spec.family!r}: this backbone builds {", ".join(families)}; use type='
            f"'upvit_mm.{spec.kind.backbone}' or an arch of these."
        )
    return spec
