"""Layouts of PVTv2: timm, the authors' and mmdet's."""

from __future__ import annotations

from upvit_mm.checkpoints.layouts.layout import BLOCK_NAMES, Layout, Rule, fused, renamed, same


def _timm() -> Layout:
    rules = []
    for i in range(4):
        stem = 'patch_embed.' if i == 0 else f'stages.{i}.downsample.'
        rules += same(f'stages.{i}.patch_embed.', stem, ('proj', 'norm'))
        rules += same(f'stages.{i}.', f'stages.{i}.', ('norm',))
        rules += _blocks(i, f'stages.{i}.blocks.{{j}}.', dwconv='mlp.dwconv')
    return Layout('timm PVTv2', 'pvtv2', ('stages.1.downsample.proj.weight',), tuple(rules))


def _official() -> Layout:
    rules = []
    for i in range(4):
        rules += same(f'stages.{i}.patch_embed.', f'patch_embed{i + 1}.', ('proj', 'norm'))
        rules.append(Rule(f'stages.{i}.norm.{{p}}', f'norm{i + 1}.{{p}}'))
        rules += _blocks(i, f'block{i + 1}.{{j}}.', dwconv='mlp.dwconv.dwconv')
    return Layout('official PVTv2', 'pvtv2', ('patch_embed1.proj.weight',), tuple(rules))


def _blocks(i: int, theirs: str, dwconv: str) -> list[Rule]:
    ours = f'stages.{i}.blocks.{{j}}.'
    return [
        *same(ours, theirs, (*BLOCK_NAMES, 'attn.q', 'attn.sr')),
        *fused(f'{ours}attn.', f'{theirs}attn.kv.{{p}}', 'kv'),
        Rule(f'{ours}attn.sr_norm.{{p}}', f'{theirs}attn.norm.{{p}}'),
        Rule(f'{ours}mlp.dwconv.{{p}}', f'{theirs}{dwconv}.{{p}}'),
    ]


def _mmdet() -> Layout:
    rules = []
    for i in range(4):
        stage, ours, theirs = f'stages.{i}.', f'stages.{i}.blocks.{{j}}.', f'layers.{i}.1.{{j}}.'
        rules += renamed(
            {
                f'{stage}patch_embed.proj': f'layers.{i}.0.projection',
                f'{stage}patch_embed.norm': f'layers.{i}.0.norm',
                f'{stage}norm': f'layers.{i}.2',
                f'{ours}norm1': f'{theirs}norm1',
                f'{ours}norm2': f'{theirs}norm2',
                f'{ours}attn.sr': f'{theirs}attn.sr',
                f'{ours}attn.sr_norm': f'{theirs}attn.norm',
                f'{ours}attn.proj': f'{theirs}attn.attn.out_proj',
                f'{ours}mlp.dwconv': f'{theirs}ffn.layers.1',
            }
        )
        rules += fused(f'{ours}attn.', f'{theirs}attn.attn.in_proj_{{p}}', 'qkv')
        rules += [
            Rule(f'{ours}mlp.fc{n}.{{p}}', f'{theirs}ffn.layers.{layer}.{{p}}', conv1x1=True)
            for n, layer in ((1, 0), (2, 4))
        ]
    return Layout('mmdet PVTv2', 'pvtv2', ('layers.0.0.projection.weight',), tuple(rules))


PVTV2 = (_timm(), _official(), _mmdet())
