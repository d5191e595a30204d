"""Backbones that are built from an ArchSpec."""

from __future__ import annotations

from upvit_mm.arch import ArchSpec
from upvit_mm.models.backbones.base import UPBackbone
from upvit_mm.models.backbones.pvtv2 import UPPVTv2
from upvit_mm.models.backbones.vit import UPDeiT, UPViT
from upvit_mm.registry import MODELS

__all__ = ['UPBackbone', 'UPDeiT', 'UPPVTv2', 'UPViT', 'build_backbone']


def build_backbone(arch: ArchSpec, **settings) -> UPBackbone:
    """The backbone of an architecture of any family, with random weights.

    Args:
        arch: the architecture.
        **settings: arguments of the family's class.
    """
    return MODELS.get(arch.kind.backbone)(arch, **settings)
