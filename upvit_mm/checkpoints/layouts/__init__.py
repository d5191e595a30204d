"""The tensor names of every known layout, as tables: ours on the left, theirs on the right."""

from upvit_mm.checkpoints.layouts.deit import DEIT
from upvit_mm.checkpoints.layouts.dino import DINO
from upvit_mm.checkpoints.layouts.layout import Layout, Rule, fill, pattern
from upvit_mm.checkpoints.layouts.pvtv2 import PVTV2

LAYOUTS = (*DINO, *DEIT, *PVTV2)  # the first whose markers are all there: DINO's have DeiT's too
OURS_MARKER = 'stages.0.patch_embed.proj.weight'

__all__ = ['LAYOUTS', 'OURS_MARKER', 'Layout', 'Rule', 'fill', 'pattern']
