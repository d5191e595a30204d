"""Layouts of DeiT and of ViTs without LayerScale: timm's, which the authors use too, and mmpretrain's."""

from __future__ import annotations

from upvit_mm.checkpoints.layouts.layout import BLOCK_NAMES, Layout, Rule, fused, renamed, same
from upvit_mm.checkpoints.steps import DISTILLATION

BLOCK = 'stages.0.blocks.{j}.'
TOKENS = tuple(Rule(name, name) for name in ('cls_token', 'pos_embed', 'reg_token'))
DISTILLED = Rule('dist_token', 'dist_token')
# names of timm, which most others have taken over
TIMM = (
    *same('stages.0.', '', ('patch_embed.proj', 'norm')),
    *same(BLOCK, 'blocks.{j}.', ('norm1', 'attn.proj', 'norm2')),
    *fused(f'{BLOCK}attn.', 'blocks.{j}.attn.qkv.{p}', 'qkv'),
)
TIMM_MLP = tuple(same(BLOCK, 'blocks.{j}.', BLOCK_NAMES[-2:]))
MMPRETRAIN = (
    *renamed(
        {
            'stages.0.patch_embed.proj': 'patch_embed.projection',
            'stages.0.norm': 'ln1',
            f'{BLOCK}norm1': 'layers.{j}.ln1',
            f'{BLOCK}norm2': 'layers.{j}.ln2',
            f'{BLOCK}attn.proj': 'layers.{j}.attn.proj',
        }
    ),
    *fused(f'{BLOCK}attn.', 'layers.{j}.attn.qkv.{p}', 'qkv'),
)
MMPRETRAIN_MLP = {f'{BLOCK}mlp.fc1': 'layers.{j}.ffn.layers.0.0', f'{BLOCK}mlp.fc2': 'layers.{j}.ffn.layers.1'}

DEIT = (
    Layout(
        'timm / official DeiT',
        'deit',
        ('blocks.0.attn.qkv.weight',),
        (*TOKENS[:2], DISTILLED, *TIMM, *TIMM_MLP),
        (DISTILLATION,),
    ),
    Layout(
        'mmpretrain DeiT / ViT',
        'deit',
        ('layers.0.ffn.layers.0.0.weight',),
        (*TOKENS[:2], DISTILLED, *MMPRETRAIN, *renamed(MMPRETRAIN_MLP)),
        (DISTILLATION,),
    ),
)
