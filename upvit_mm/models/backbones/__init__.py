from upvit_mm.models.backbones.deit import UPDeiT
from upvit_mm.models.backbones.pvtv2 import UPPVTv2

__all__ = ['UPDeiT', 'UPPVTv2']
