"""Files of DINOv2 and DINOv3 as their makers write them, from timm's networks by renaming that is written out here."""

import logging
import math
import re

import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models.eva import checkpoint_filter_fn as timm_reads_dinov3
from timm.models.vision_transformer import checkpoint_filter_fn as timm_reads_dinov2

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import LAYOUTS, detect_layout, from_ours, load_backbone, to_ours

LAYOUT = {layout.name: layout for layout in LAYOUTS}
V2 = dict(init_values=1e-5)
REGISTERS = dict(reg_tokens=4, no_embed_class=True)
GIANT = dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=4.0)


def substituted(state, *pairs):
    """A state dict whose names are changed by regular expressions, one after the other."""
    for expression, form in pairs:
        state = {re.sub(expression, form, k): v for k, v in state.items()}
    return state


def split(state, expression, *names):
    """Tensors whose name matches are cut into equal parts, named like the match with one of ``names``."""
    cut = {k: v for k, v in state.items() if re.search(expression, k)}
    parts = {re.sub(expression, n, k): t for k, v in cut.items() for n, t in zip(names, v.chunk(len(names)))}
    return {k: v for k, v in state.items() if k not in cut} | parts


# ----------------------------------------------------------------------- DINOv2


@pytest.fixture(params=['plain', 'registers', 'giant', 'giant with registers'])
def timm_v2(request, tiny_source):
    settings = V2 | (REGISTERS if 'registers' in request.param else {}) | (GIANT if 'giant' in request.param else {})
    return tiny_source('timm-dinov2', **settings)


def meta_v2(source):
    """Of Meta; where there are registers, timm has added the first position to the class token, here half of it."""
    state = dict(source.state)
    if 'reg_token' in state:
        half = state['cls_token'] / 2
        state |= {'cls_token': half, 'pos_embed': torch.cat([half, state['pos_embed']], 1)}
    if state['blocks.0.mlp.fc1.weight'].shape[0] == 2 * state['blocks.0.mlp.fc2.weight'].shape[1]:
        state = substituted(state, (r'mlp\.fc1', 'mlp.w12'), (r'mlp\.fc2', 'mlp.w3'))
    return substituted(state, ('reg_token', 'register_tokens')) | {'mask_token': torch.ones(1, 48)}


def hugging_face_v2(source):
    state = split(meta_v2(source), r'attn\.qkv', *(f'attention.attention.{n}' for n in ('query', 'key', 'value')))
    return substituted(
        state,
        (r'\Anorm\.', 'layernorm.'),
        (r'\A(cls_token|register_tokens|mask_token)', r'embeddings.\1'),
        (r'\Apos_embed', 'embeddings.position_embeddings'),
        (r'\Apatch_embed\.proj', 'embeddings.patch_embeddings.projection'),
        (r'\Ablocks', 'encoder.layer'),
        (r'attn\.proj', 'attention.output.dense'),
        (r'ls(\d)\.gamma', r'layer_scale\1.lambda1'),
        (r'mlp\.w12', 'mlp.weights_in'),
        (r'mlp\.w3', 'mlp.weights_out'),
    )


def same_network(ours, expected):
    """Equal tensors, where the class token and its position count as their sum."""

    def summed(state):
        if 'pos_embed' not in state:
            return state
        first, places = state['pos_embed'].split([1, state['pos_embed'].shape[1] - 1], dim=1)
        return state | {'cls_token': state['cls_token'] + first, 'pos_embed': places}

    a, b = summed(ours), summed(expected)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_dinov2_of_meta_and_hugging_face(timm_v2):
    expected = to_ours(timm_v2.state)
    for name, state in (('Meta DINOv2', meta_v2(timm_v2)), ('Hugging Face DINOv2', hugging_face_v2(timm_v2))):
        assert detect_layout(state).name == name
        assert same_network(to_ours(state), expected)
        back = from_ours(to_ours(state), LAYOUT[name])
        assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items() if 'mask' not in k}
        again = back | {k: v for k, v in state.items() if 'mask' in k}
        assert same_network(to_ours(again), to_ours(state))


def test_dinov2_of_meta_is_what_timm_reads(timm_v2, identical):
    """timm's own reader vouches for the names and for the position of the class token."""
    given, expected = meta_v2(timm_v2), to_ours(timm_v2.state)
    read = timm_reads_dinov2(dict(given), timm_v2.model)
    assert identical(to_ours(read), expected)
    layout = LAYOUT['timm DINOv2 / ViT with LayerScale']
    timm_v2.model.load_state_dict(from_ours(to_ours(given), layout) | timm_v2.head)  # strict


def test_blocks_in_groups(timm_v2, tmp_path, identical):
    """Meta's pretraining writes them (``block_chunks``), with a second network and heads beside it."""
    plain = meta_v2(timm_v2)
    groups = substituted(plain, (r'\Ablocks\.0\.', 'blocks.0.0.'), (r'\Ablocks\.([12])\.', r'blocks.1.\1.'))
    assert identical(to_ours(groups), to_ours(plain))
    content = {'teacher': {f'backbone.{k}': v for k, v in groups.items()} | {'dino_head.mlp.0.weight': torch.ones(2)}}
    torch.save(content, tmp_path / 'teacher_checkpoint.pth')
    assert identical(load_backbone(tmp_path / 'teacher_checkpoint.pth'), to_ours(plain))


def test_half_precision_is_folded_in_float32(tiny_source):
    state = {k: v.bfloat16() for k, v in tiny_source('timm-dinov2').state.items()}
    folded = to_ours(state)['stages.0.blocks.1.mlp.fc2.weight']
    exact = state['blocks.1.ls2.gamma'].double()[:, None] * state['blocks.1.mlp.fc2.weight'].double()
    assert folded.dtype == torch.float32
    assert torch.equal(folded, exact.float())


# ----------------------------------------------------------------------- DINOv3


@pytest.fixture(params=['gelu', 'swiglu'])
def timm_v3(request, tiny_source):
    return tiny_source('timm-dinov3', swiglu_mlp=request.param == 'swiglu', num_heads=4)


@pytest.fixture
def arch():
    fields = dict(family='dinov3', embed_dims=128, depths=2, num_heads=4, mlp_hidden_dims=192, num_registers=4)
    return ArchSpec(**fields, img_size=64)


def meta_v3(source, base=100.0):
    state = {k: v for k, v in source.state.items() if not re.search(r'\.[qv]_bias', k)}
    for j in range(2):
        q, v = (source.state[f'blocks.{j}.attn.{n}_bias'] for n in 'qv')
        ones = torch.ones_like(q)
        state[f'blocks.{j}.attn.qkv.bias'] = torch.cat([q, 7 * ones, v])  # a masked bias has any value
        state[f'blocks.{j}.attn.qkv.bias_mask'] = torch.cat([ones, 0 * ones, ones])
    state['rope_embed.periods'] = (base ** (torch.arange(8) / 8)).bfloat16()
    state['mask_token'] = torch.ones(1, 128)
    return substituted(
        state,
        ('reg_token', 'storage_tokens'),
        (r'gamma_(\d)', r'ls\1.gamma'),
        (r'mlp\.fc1_g', 'mlp.w1'),
        (r'mlp\.fc1_x', 'mlp.w2'),
        *([(r'mlp\.fc2', 'mlp.w3')] if 'blocks.0.mlp.fc1_g.weight' in state else []),
    )


def hugging_face_v3(source):
    state = split(source.state, r'attn\.qkv', *(f'attention.{n}_proj' for n in 'qkv'))
    return substituted(
        state,
        (r'\Acls_token', 'embeddings.cls_token'),
        (r'\Areg_token', 'embeddings.register_tokens'),
        (r'\Apatch_embed\.proj', 'embeddings.patch_embeddings'),
        (r'\Ablocks', 'layer'),
        (r'attn\.(\w)_bias', r'attention.\1_proj.bias'),
        (r'attn\.proj', 'attention.o_proj'),
        (r'gamma_(\d)', r'layer_scale\1.lambda1'),
        (r'mlp\.fc1_g', 'mlp.gate_proj'),
        (r'mlp\.fc1_x', 'mlp.up_proj'),
        (r'mlp\.fc1', 'mlp.up_proj'),
        (r'mlp\.fc2', 'mlp.down_proj'),
    ) | {'embeddings.mask_token': torch.ones(1, 1, 128)}


def test_dinov3_of_meta_and_hugging_face(timm_v3, arch, identical):
    expected = to_ours(timm_v3.state, arch)
    for name, state in (('Meta DINOv3', meta_v3(timm_v3)), ('Hugging Face DINOv3', hugging_face_v3(timm_v3))):
        assert detect_layout(state).name == name
        ours = to_ours(state, arch)
        assert identical(ours, expected)
        back = from_ours(ours, LAYOUT[name], arch)
        assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items() if 'mask_t' not in k}
        assert identical(to_ours(back, arch), ours)


def test_dinov3_of_meta_is_what_timm_reads(timm_v3, arch, identical):
    read = timm_reads_dinov3(meta_v3(timm_v3), timm_v3.model)
    assert identical(to_ours(read, arch), to_ours(timm_v3.state, arch))


@pytest.mark.parametrize('prefix', ['', 'model.', 'dinov3_vit.'])
@pytest.mark.parametrize('nested', [False, True])
def test_hugging_face_prefixes(prefix, nested, timm_v3, arch, tmp_path, identical):
    """``ForImageClassification`` and the like, and transformers 5, whose layers are in a module of their own."""
    state = hugging_face_v3(timm_v3)
    state = substituted(state, (r'\Alayer\.', 'model.layer.')) if nested else state
    torch.save({f'{prefix}{k}': v for k, v in state.items()}, tmp_path / 'x.pth')
    assert identical(load_backbone(tmp_path / 'x.pth', arch=arch), to_ours(timm_v3.state, arch))


def test_no_biases(tiny_source, identical):
    """``vit_*_patch16_dinov3`` without ``_qkvb``: the published ones are zero."""
    source = tiny_source('timm-dinov3', qkv_bias=False)
    ours = to_ours(source.state)
    biases = [v for k, v in ours.items() if k.endswith(('attn.q.bias', 'attn.v.bias'))]
    assert len(biases) == 4
    assert not any(b.any() for b in biases)
    assert not any(k.endswith('attn.k.bias') for k in ours)


def test_heads_come_from_the_arch_the_periods_or_the_published_ones(timm_v3, arch, caplog):
    key = 'stages.0.blocks.1.attn.rotary.frequencies'
    named = to_ours(timm_v3.state, arch)[key]
    assert torch.equal(named[:32], named[32:64])  # 4 heads of 32 channels
    assert torch.equal(to_ours(meta_v3(timm_v3))[key], named)
    with caplog.at_level(logging.INFO, 'upvit_mm'):
        published = to_ours(timm_v3.state)[key]
    assert 'no tensor shows the heads: they are taken to be 64 channels wide' in caplog.text
    assert published[15, 0].item() == pytest.approx(2 * math.pi / 100 ** (15 / 16))
    assert torch.equal(published[:64], published[64:])


def test_other_periods_heads_and_key_biases_are_refused(timm_v3, arch):
    with pytest.raises(ValueError, match=r'periods run from 1 to 3168: in a DINOv3 .* from 1 to 56\.23'):
        to_ours(meta_v3(timm_v3, base=10000.0), arch)
    two = arch.with_widths({'num_heads': [[2, 2]]})
    with pytest.raises(ValueError, match=r'has 8 values, as for heads of 32 channels; the arch has heads of 64'):
        to_ours(meta_v3(timm_v3), two)
    state = {k: v for k, v in meta_v3(timm_v3).items() if not k.endswith('bias_mask')}
    with pytest.raises(ValueError, match=r'blocks\.\d\.attn\.k\.bias has values other than 0: keys of a DINOv3'):
        to_ours(state, arch)
    with pytest.raises(ValueError, match=r'1 tensor\(s\) have no place in a dinov3 backbone .*: cls_norm\.weight'):
        to_ours(meta_v3(timm_v3) | {'cls_norm.weight': torch.ones(128)}, arch)
