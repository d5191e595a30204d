"""Everything that depends on the kind of a network, in one value for each family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A kind of network: how the widths of an ``ArchSpec`` are connected.

    Attributes:
        name: the value of ``ArchSpec.family``.
        title: the name in texts.
        backbone: class in ``upvit_mm.models.backbones``, registered in the scope ``upvit_mm``.
        dims: module whose ``TABLE`` declares which tensor axes shrink together (``upvit_mm.pruning.table.Table``).
        kernels: side of each stage's patches in pixels of its input; None = the arch's ``patch_size``.
        strides: step between patches, in the same pixels; one for each stage.
        num_prefix_tokens: tokens before the grid's tokens, without a place on the grid; the first is the class token.
        reduces_keys: whether keys and values may be spatially reduced (``ArchSpec.sr_ratios``).
        allows_windows: whether blocks may attend within windows.
        upstream: classes of mmdet and mmpretrain that build the same networks.
        stock: names of stock architectures, for messages.
    """

    name: str
    title: str
    backbone: str
    dims: str
    kernels: tuple[int | None, ...]
    strides: tuple[int | None, ...]
    num_prefix_tokens: int = 0
    reduces_keys: bool = False
    allows_windows: bool = False
    upstream: tuple[str, ...] = ()
    stock: str = ''

    @property
    def num_stages(self) -> int:
        return len(self.strides)

    @property
    def is_pyramid(self) -> bool:
        """Whether the backbone gives maps of several strides; otherwise a neck must make them from one."""
        return self.num_stages > 1

    @property
    def reads_class_token(self) -> bool:
        """What a classifier's head reads: the class token, else the mean over tokens."""
        return self.num_prefix_tokens > 0


DEIT = Family(
    name='deit',
    title='DeiT',
    backbone='UPDeiT',
    dims='upvit_mm.pruning.dims_deit',
    kernels=(None,),
    strides=(None,),
    num_prefix_tokens=1,
    allows_windows=True,
    upstream=('VisionTransformer', 'DistilledVisionTransformer'),
    stock="'deit-tiny', 'deit-small' or 'deit-base'",
)
PVTV2 = Family(
    name='pvtv2',
    title='PVTv2',
    backbone='UPPVTv2',
    dims='upvit_mm.pruning.dims_pvtv2',
    kernels=(7, 3, 3, 3),
    strides=(4, 2, 2, 2),
    reduces_keys=True,
    upstream=('PyramidVisionTransformerV2',),
    stock="'pvtv2-b0' ... 'pvtv2-b5'",
)
FAMILIES = {family.name: family for family in (DEIT, PVTV2)}


def family_named(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f'family = {name!r}: must be one of {", ".join(FAMILIES)}.')
    return FAMILIES[name]
