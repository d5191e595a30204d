"""Put another architecture into a config's model."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import ConfigDict

from upvit_mm.arch import ArchSpec


def put_arch(model: ConfigDict, arch: ArchSpec) -> None:
    """Change the backbone's widths, and the inputs of the part that reads it; in place.

    That part is a detector's neck, or its first part, or the linear head of a classifier. The backbone's start weights
    are removed, because they have other widths.

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
    widths = list(arch.embed_dims)
    if arch.kind.is_pyramid and backbone.get('out_indices') is not None:
        widths = [widths[i] for i in sorted(backbone.out_indices)]
    (model.neck[0] if isinstance(model.neck, Sequence) else model.neck).in_channels = widths
