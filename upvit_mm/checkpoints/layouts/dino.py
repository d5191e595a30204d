"""Layouts of DINOv2 and DINOv3: timm's, Meta's, Hugging Face's (``transformers``) and mmpretrain's."""

from __future__ import annotations

from upvit_mm.checkpoints.layouts.deit import BLOCK, MMPRETRAIN, MMPRETRAIN_MLP, TIMM, TIMM_MLP, TOKENS
from upvit_mm.checkpoints.layouts.layout import Layout, Rule, fused, renamed, same
from upvit_mm.checkpoints.steps import (
    CLASS_POSITION,
    GAMMAS,
    KEY_BIAS,
    LAYER_SCALE,
    MASK,
    PACKED,
    PERIODS,
    QV_BIASES,
    ROTARY,
    ROTARY_PERIODS,
)

MASK_TOKEN = (r'(embeddings\.)?mask_token\Z', 'it is of pretraining only')
# DINOv2's option block_chunks, for pretraining on many GPUs, puts blocks into groups
CHUNKS = (r'\bblocks\.\d+\.(?=\d+\.)', 'blocks.')
# transformers 5 has the layers of DINOv3 in a module of their own
NESTED = (r'\b(?:model|encoder)\.layer\.', 'layer.')


def _scales(attention: str, ffn: str) -> list[Rule]:
    """LayerScale after attention and after the feed-forward network."""
    return [Rule(f'{BLOCK}{ours}', theirs) for ours, theirs in zip(GAMMAS, (attention, ffn))]


def _gated(ffn: str, gate: str, fc1: str, fc2: str) -> list[Rule]:
    """A SwiGLU of three modules."""
    names = {'gate': gate, 'fc1': fc1, 'fc2': fc2}
    return renamed({f'{BLOCK}mlp.{ours}': f'{ffn}.{theirs}' for ours, theirs in names.items()}, ffn='swiglu')


def _packed(ffn: str, fc1: str, fc2: str) -> list[Rule]:
    """A SwiGLU whose gate and ``fc1`` are one module."""
    halves = fused(f'{BLOCK}mlp.', f'{ffn}.{fc1}.{{p}}', ('gate', 'fc1'), ffn='swiglu')
    return [*halves, *renamed({f'{BLOCK}mlp.fc2': f'{ffn}.{fc2}'}, ffn='swiglu')]


def _plain(rules: tuple[Rule, ...]) -> list[Rule]:
    """Rules of a feed-forward network that hold without a gate only."""
    return [Rule(rule.ours, rule.theirs, ffn='gelu') for rule in rules]


LS = _scales('blocks.{j}.ls1.gamma', 'blocks.{j}.ls2.gamma')
HF_SCALES = ('layer_scale1.lambda1', 'layer_scale2.lambda1')
FUSED = 'blocks.0.attn.qkv.weight'

META = (
    Layout(
        'Meta DINOv3',
        'dinov3',
        ('rope_embed.periods', FUSED),
        (
            TOKENS[0],
            Rule('reg_token', 'storage_tokens'),
            Rule(PERIODS, 'rope_embed.periods'),
            Rule(f'{BLOCK}{MASK}', 'blocks.{j}.attn.qkv.bias_mask'),
            *(*TIMM, *LS, *_plain(TIMM_MLP)),
            *_gated('blocks.{j}.mlp', 'w1', 'w2', 'w3'),
        ),
        (LAYER_SCALE, KEY_BIAS, QV_BIASES, ROTARY_PERIODS),
        (MASK_TOKEN,),
    ),
    Layout(
        'Meta DINOv2',
        'dinov2',
        ('blocks.0.ls1.gamma', 'mask_token', FUSED),
        (
            *TOKENS[:2],
            Rule('reg_token', 'register_tokens'),
            *(*TIMM, *LS, *_plain(TIMM_MLP)),
            *_packed('blocks.{j}.mlp', 'w12', 'w3'),
        ),
        (LAYER_SCALE,),
        (MASK_TOKEN,),
        (CHUNKS,),
    ),
)
TIMM_DINO = (
    Layout(
        'timm DINOv2 / ViT with LayerScale',
        'dinov2',
        ('blocks.0.ls1.gamma', FUSED),
        (*TOKENS, *TIMM, *TIMM_MLP, *LS),
        (LAYER_SCALE, CLASS_POSITION, PACKED),
    ),
    Layout(
        'timm DINOv3',
        'dinov3',
        ('blocks.0.gamma_1', FUSED),
        (
            *(TOKENS[0], TOKENS[2]),
            *(rule for rule in TIMM if 'qkv' not in rule.theirs),
            *(Rule(f'{BLOCK}attn.{n}.weight', 'blocks.{j}.attn.qkv.weight', slot=(i, 3)) for i, n in enumerate('qkv')),
            *(Rule(f'{BLOCK}attn.{n}.bias', f'blocks.{{j}}.attn.{n}_bias') for n in 'qv'),
            *_scales('blocks.{j}.gamma_1', 'blocks.{j}.gamma_2'),
            *_plain(TIMM_MLP),
            *_gated('blocks.{j}.mlp', 'fc1_g', 'fc1_x', 'fc2'),
        ),
        (LAYER_SCALE, QV_BIASES, ROTARY),
    ),
)
HUGGING_FACE = (
    Layout(
        'Hugging Face DINOv3',
        'dinov3',
        ('embeddings.patch_embeddings.weight', 'layer.0.attention.q_proj.weight'),
        (
            Rule('cls_token', 'embeddings.cls_token'),
            Rule('reg_token', 'embeddings.register_tokens'),
            *renamed({'stages.0.patch_embed.proj': 'embeddings.patch_embeddings', 'stages.0.norm': 'norm'}),
            *same(BLOCK, 'layer.{j}.', ('norm1', 'norm2')),
            *renamed({f'{BLOCK}attn.{n}': f'layer.{{j}}.attention.{n}_proj' for n in 'qkv'}),
            *renamed({f'{BLOCK}attn.proj': 'layer.{j}.attention.o_proj'}),
            *renamed(
                {
                    f'{BLOCK}mlp.gate': 'layer.{j}.mlp.gate_proj',
                    f'{BLOCK}mlp.fc1': 'layer.{j}.mlp.up_proj',
                    f'{BLOCK}mlp.fc2': 'layer.{j}.mlp.down_proj',
                }
            ),
            *_scales(*(f'layer.{{j}}.{name}' for name in HF_SCALES)),
        ),
        (LAYER_SCALE, QV_BIASES, ROTARY),
        (MASK_TOKEN,),
        (NESTED,),
    ),
    Layout(
        'Hugging Face DINOv2',
        'dinov2',
        ('embeddings.patch_embeddings.projection.weight', 'encoder.layer.0.layer_scale1.lambda1'),
        (
            Rule('cls_token', 'embeddings.cls_token'),
            Rule('pos_embed', 'embeddings.position_embeddings'),
            Rule('reg_token', 'embeddings.register_tokens'),
            *renamed({'stages.0.patch_embed.proj': 'embeddings.patch_embeddings.projection'}),
            *renamed({'stages.0.norm': 'layernorm'}),
            *same(BLOCK, 'encoder.layer.{j}.', ('norm1', 'norm2')),
            *renamed(
                {
                    f'{BLOCK}attn.{n[0]}': f'encoder.layer.{{j}}.attention.attention.{n}'
                    for n in ('query', 'key', 'value')
                }
            ),
            *renamed({f'{BLOCK}attn.proj': 'encoder.layer.{j}.attention.output.dense'}),
            *_plain(tuple(same(BLOCK, 'encoder.layer.{j}.', ('mlp.fc1', 'mlp.fc2')))),
            *_packed('encoder.layer.{j}.mlp', 'weights_in', 'weights_out'),
            *_scales(*(f'encoder.layer.{{j}}.{name}' for name in HF_SCALES)),
        ),
        (LAYER_SCALE,),
        (MASK_TOKEN,),
    ),
)
MMPRETRAIN_DINO = Layout(
    'mmpretrain DINOv2',
    'dinov2',
    ('layers.0.attn.gamma1.weight', 'layers.0.attn.qkv.weight'),
    (
        *(*TOKENS[:2], *MMPRETRAIN),
        *renamed(MMPRETRAIN_MLP, ffn='gelu'),
        *_packed('layers.{j}.ffn', 'w12', 'w3'),
        *_scales('layers.{j}.attn.gamma1.weight', 'layers.{j}.ffn.gamma2.weight'),
    ),
    (LAYER_SCALE,),
)

DINO = (*META, *TIMM_DINO, *HUGGING_FACE, MMPRETRAIN_DINO)
