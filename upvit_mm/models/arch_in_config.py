"""Put another architecture into a config's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import ConfigDict

from upvit_mm.arch import ArchSpec


def put_arch(model: ConfigDict, arch: ArchSpec) -> None:
    """Change the backbone's widths, and the inputs of the parts that read it; in place.

    Those parts are a detector's neck, or its first part; without a neck, the heads that name several input widths; in a
    classifier the linear head. The backbone's start weights are removed, because they have other widths.

    Args:
        model: of mmdet or mmpretrain, with one of our backbones.
        arch: of the same family.
    """
    backbone = model.backbone
    backbone.arch = arch.to_dict()
    backbone.pop('init_cfg', None)
    if 'head' in model:  # of a classifier
        model.head.in_channels = arch.embed_dims[-1]
        return
    widths = map_widths(backbone, arch)
    for part in reading_parts(model):
        one = isinstance(part.get('in_channels'), int)  # such a neck reads the last map
        part.in_channels = widths[-1] if one else widths


def map_widths(backbone: Mapping, arch: ArchSpec) -> list[int]:
    """Channels of each map that a backbone with these settings returns."""
    return [arch.embed_dims[i] for i in map_stages(backbone, arch)]


def map_stages(backbone: Mapping, arch: ArchSpec) -> list[int]:
    """The stage of each map; those of a plain ViT all have the same."""
    indices = backbone.get('out_indices')
    if arch.kind.is_pyramid:
        stages = range(arch.num_stages)
        return list(stages) if indices is None else sorted(stages[i] for i in indices)
    return [0] * (len(indices) if isinstance(indices, Sequence) else 1)


def reading_parts(model: ConfigDict) -> list[ConfigDict]:
    """Settings of the parts of a detector that read the backbone's maps; each has ``in_channels``."""
    neck = model.get('neck')
    if neck:
        return [neck[0] if isinstance(neck, Sequence) else neck]
    parts = [value for name, value in model.items() if name != 'backbone' and isinstance(value, Mapping)]
    return [part for part in parts if isinstance(part.get('in_channels'), Sequence)]
