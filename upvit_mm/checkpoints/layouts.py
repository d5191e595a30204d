"""The tensor names of every known layout, as tables: ours on the left, theirs on the right.

In a template ``{j}`` is a block number and ``{p}`` is ``weight`` or ``bias``. A slot ``(k, n)`` means: our tensor is
the k-th of n equal parts of theirs along axis 0 (fused q, k, v).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

Slot = tuple[int, int]  # (part, parts)

PLACEHOLDERS = {'{j}': r'(?P<j>\d+)', '{p}': r'(?P<p>weight|bias)'}


@dataclass(frozen=True)
class Rule:
    """One of our tensors, or a group of them, and its name in another layout."""

    ours: str
    theirs: str
    slot: Slot = (0, 1)
    conv1x1: bool = False  # theirs is a 1x1 convolution, ours the equal Linear


@dataclass(frozen=True)
class Layout:
    """The tensor names of one family in one code base.

    Attributes:
        name: its name in messages.
        family: family of the arch that it describes.
        marker: a key that only this layout has.
        rules: every backbone tensor.
        dropped: patterns of backbone-level keys that have no place in our backbones, with the reason.
    """

    name: str
    family: str
    marker: str
    rules: tuple[Rule, ...]
    dropped: tuple[tuple[str, str], ...] = ()

    def holds(self, ours: Iterable[str]) -> bool:
        """Whether it has a name for each of these tensors of ours."""
        patterns = [pattern(rule.ours) for rule in self.rules]
        return all(any(p.match(key) for p in patterns) for key in ours)


def pattern(template: str) -> re.Pattern:
    """Regular expression that matches exactly the keys of a template."""
    expression = re.escape(template)
    for placeholder, group in PLACEHOLDERS.items():
        expression = expression.replace(re.escape(placeholder), group)
    return re.compile(expression + r'\Z')


def fill(template: str, groups: dict[str, str]) -> str:
    """The key of a template for the given block number and parameter name."""
    for name, value in groups.items():
        template = template.replace('{' + name + '}', value)
    return template


def _same(ours: str, theirs: str, names: Iterable[str]) -> list[Rule]:
    """Modules that keep their name but have another parent."""
    return [Rule(f'{ours}{n}.{{p}}', f'{theirs}{n}.{{p}}') for n in names]


def _fused(ours: str, theirs: str, names: str) -> list[Rule]:
    return [Rule(f'{ours}{n}.{{p}}', theirs, slot=(i, len(names))) for i, n in enumerate(names)]


BLOCK_NAMES = ('norm1', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
DISTILLED = (r'dist_token\Z', 'the distillation token has no place in a plain DeiT')


def _timm_deit() -> Layout:
    ours, theirs = 'stages.0.blocks.{j}.', 'blocks.{j}.'
    rules = [
        Rule('cls_token', 'cls_token'),
        Rule('pos_embed', 'pos_embed'),
        *_same('stages.0.', '', ('patch_embed.proj', 'norm')),
        *_same(ours, theirs, BLOCK_NAMES),
        *_fused(f'{ours}attn.', f'{theirs}attn.qkv.{{p}}', 'qkv'),
    ]
    return Layout('timm / official DeiT', 'deit', 'blocks.0.attn.qkv.weight', tuple(rules), (DISTILLED,))


def _mmpretrain_deit() -> Layout:
    ours, theirs = 'stages.0.blocks.{j}.', 'layers.{j}.'
    renamed = {
        'stages.0.patch_embed.proj': 'patch_embed.projection',
        'stages.0.norm': 'ln1',
        f'{ours}norm1': f'{theirs}ln1',
        f'{ours}norm2': f'{theirs}ln2',
        f'{ours}attn.proj': f'{theirs}attn.proj',
        f'{ours}mlp.fc1': f'{theirs}ffn.layers.0.0',
        f'{ours}mlp.fc2': f'{theirs}ffn.layers.1',
    }
    rules = [
        Rule('cls_token', 'cls_token'),
        Rule('pos_embed', 'pos_embed'),
        *(Rule(f'{a}.{{p}}', f'{b}.{{p}}') for a, b in renamed.items()),
        *_fused(f'{ours}attn.', f'{theirs}attn.qkv.{{p}}', 'qkv'),
    ]
    return Layout('mmpretrain DeiT / ViT', 'deit', 'layers.0.ffn.layers.0.0.weight', tuple(rules), (DISTILLED,))


def _timm_pvtv2() -> Layout:
    rules = []
    for i in range(4):
        stem = 'patch_embed.' if i == 0 else f'stages.{i}.downsample.'
        rules += _same(f'stages.{i}.patch_embed.', stem, ('proj', 'norm'))
        rules += _same(f'stages.{i}.', f'stages.{i}.', ('norm',))
        rules += _pvtv2_blocks(i, f'stages.{i}.blocks.{{j}}.', dwconv='mlp.dwconv')
    return Layout('timm PVTv2', 'pvtv2', 'stages.1.downsample.proj.weight', tuple(rules))


def _official_pvtv2() -> Layout:
    rules = []
    for i in range(4):
        rules += _same(f'stages.{i}.patch_embed.', f'patch_embed{i + 1}.', ('proj', 'norm'))
        rules.append(Rule(f'stages.{i}.norm.{{p}}', f'norm{i + 1}.{{p}}'))
        rules += _pvtv2_blocks(i, f'block{i + 1}.{{j}}.', dwconv='mlp.dwconv.dwconv')
    return Layout('official PVTv2', 'pvtv2', 'patch_embed1.proj.weight', tuple(rules))


def _pvtv2_blocks(i: int, theirs: str, dwconv: str) -> list[Rule]:
    ours = f'stages.{i}.blocks.{{j}}.'
    return [
        *_same(ours, theirs, (*BLOCK_NAMES, 'attn.q', 'attn.sr')),
        *_fused(f'{ours}attn.', f'{theirs}attn.kv.{{p}}', 'kv'),
        Rule(f'{ours}attn.sr_norm.{{p}}', f'{theirs}attn.norm.{{p}}'),
        Rule(f'{ours}mlp.dwconv.{{p}}', f'{theirs}{dwconv}.{{p}}'),
    ]


def _mmdet_pvtv2() -> Layout:
    rules = []
    for i in range(4):
        stage, ours, theirs = f'stages.{i}.', f'stages.{i}.blocks.{{j}}.', f'layers.{i}.1.{{j}}.'
        renamed = {
            f'{stage}patch_embed.proj.{{p}}': f'layers.{i}.0.projection.{{p}}',
            f'{stage}patch_embed.norm.{{p}}': f'layers.{i}.0.norm.{{p}}',
            f'{stage}norm.{{p}}': f'layers.{i}.2.{{p}}',
            f'{ours}norm1.{{p}}': f'{theirs}norm1.{{p}}',
            f'{ours}norm2.{{p}}': f'{theirs}norm2.{{p}}',
            f'{ours}attn.sr.{{p}}': f'{theirs}attn.sr.{{p}}',
            f'{ours}attn.sr_norm.{{p}}': f'{theirs}attn.norm.{{p}}',
            f'{ours}attn.proj.{{p}}': f'{theirs}attn.attn.out_proj.{{p}}',
            f'{ours}mlp.dwconv.{{p}}': f'{theirs}ffn.layers.1.{{p}}',
        }
        rules += [Rule(a, b) for a, b in renamed.items()]
        rules += _fused(f'{ours}attn.', f'{theirs}attn.attn.in_proj_{{p}}', 'qkv')
        rules += [
            Rule(f'{ours}mlp.fc{n}.{{p}}', f'{theirs}ffn.layers.{layer}.{{p}}', conv1x1=True)
            for n, layer in ((1, 0), (2, 4))
        ]
    return Layout('mmdet PVTv2', 'pvtv2', 'layers.0.0.projection.weight', tuple(rules))


LAYOUTS = (_timm_deit(), _mmpretrain_deit(), _timm_pvtv2(), _official_pvtv2(), _mmdet_pvtv2())
OURS_MARKER = 'stages.0.patch_embed.proj.weight'
