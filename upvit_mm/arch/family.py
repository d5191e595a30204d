"""Everything that depends on the kind of a network, in one value for each family."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
        num_class_tokens: 1 if a class token, without a place on the grid, comes before the grid's tokens; registers
            may follow it (``ArchSpec.num_registers``).
        rotary: whether queries and keys are rotated by their place, instead of positions that are added to tokens.
        key_bias: whether keys have a bias.
        norm_eps: added to the variance in the norms of blocks and at the end of a stage.
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
    num_class_tokens: int = 0
    rotary: bool = False
    key_bias: bool = True
    norm_eps: float = 1e-6
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
        return self.num_class_tokens > 0


DEIT = Family(
    name='deit',
    title='DeiT',
    backbone='UPDeiT',
    dims='upvit_mm.pruning.dims_vit',
    kernels=(None,),
    strides=(None,),
    num_class_tokens=1,
    allows_windows=True,
    upstream=('VisionTransformer', 'DistilledVisionTransformer'),
    stock="'deit-tiny', 'deit-small' or 'deit-base'",
)
DINOV2 = replace(
    DEIT,
    name='dinov2',
    title='DINOv2',
    backbone='UPViT',
    upstream=('VisionTransformer',),
    stock="'dinov2-small' ... 'dinov2-giant', with '-reg' for registers",
)
DINOV3 = replace(
    DINOV2,
    name='dinov3',
    title='DINOv3',
    rotary=True,
    key_bias=False,
    norm_eps=1e-5,
    upstream=(),
    stock="'dinov3-small' ... 'dinov3-huge-plus'",
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
FAMILIES = {family.name: family for family in (DEIT, DINOV2, DINOV3, PVTV2)}


def family_named(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f'family = {name!r}: must be one of {", ".join(FAMILIES)}.')
    return FAMILIES[name]
