"""Building blocks shared by all families.

Shape legend: ``B`` batch, ``H, W`` feature grid, ``N = H*W`` tokens, ``P`` prefix tokens (class token, registers),
``M`` tokens after spatial reduction, ``C`` embed_dims, ``K`` qk_dim, ``V`` v_dim, ``F`` mlp_hidden_dim,
``h`` heads, ``L`` tokens of a window.
"""

from upvit_mm.models.layers.attention import Attention
from upvit_mm.models.layers.block import Block, Stage
from upvit_mm.models.layers.mlp import Mlp, SwiGlu
from upvit_mm.models.layers.patch_embed import PatchEmbed
from upvit_mm.models.layers.pos_embed import resize_pos_embed
from upvit_mm.models.layers.rotary import Rotary
from upvit_mm.models.layers.windows import WindowedAttention

__all__ = [
    'Attention',
    'Block',
    'Mlp',
    'PatchEmbed',
    'Rotary',
    'Stage',
    'SwiGlu',
    'WindowedAttention',
    'resize_pos_embed',
]
