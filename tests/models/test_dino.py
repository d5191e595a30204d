"""DINOv2 and DINOv3 beside timm's: every block's tokens on any grid, and the parameters of full-size networks."""

import math

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models import vision_transformer
from torch.nn import functional

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.checkpoints import to_ours
from upvit_mm.pruning.costs import count_params

REGISTERS = dict(reg_tokens=4, no_embed_class=True)
GIANT = dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=2.66667 * 2)
# settings of timm's networks, and fields of ours; see vit_giant_patch14_reg4_dinov2 and others there
NETWORKS = {
    'dinov2': (dict(), dict()),
    'dinov2 with registers': (REGISTERS, dict(num_registers=4)),
    'dinov2 giant': (GIANT, dict(ffn='swiglu')),
    'dinov2 giant with registers': (REGISTERS | GIANT, dict(num_registers=4, ffn='swiglu')),
    'dinov3': (dict(swiglu_mlp=False, qkv_bias=False), dict()),
    'dinov3 qkvb': (dict(swiglu_mlp=False), dict()),
    'dinov3 plus': (dict(qkv_bias=False), dict(ffn='swiglu')),
    'dinov3 plus qkvb': (dict(), dict(ffn='swiglu')),
}
GRIDS = ((4, 4), (6, 4), (3, 5), (1, 7), (9, 9))  # the first is the native one


@pytest.fixture(params=NETWORKS)
def pair(request, tiny_source, build):
    """timm's network with random weights, and ours with an output for each block."""
    theirs, ours = NETWORKS[request.param]
    family = request.param.partition(' ')[0]
    if family == 'dinov2':
        theirs = theirs | dict(init_values=1e-5, patch_size=14, img_size=56, dynamic_img_size=True)
        shared = dict(embed_dims=48, depths=3, num_heads=3, patch_size=14, img_size=56)
        source = tiny_source('timm-dinov2', **theirs)
    else:
        shared = dict(embed_dims=128, depths=2, num_heads=4, num_registers=4, img_size=64)
        source = tiny_source('timm-dinov3', num_heads=4, **theirs)
    hidden = source.model.blocks[0].mlp.fc2.weight.shape[1]
    arch = ArchSpec(family=family, mlp_hidden_dims=hidden, **(shared | ours))
    return source, build(family, arch.to_dict(), out_indices=range(arch.depths[0]))


def resized_in_own_precision(posemb, new_size, num_prefix_tokens, **settings):
    """timm's ``resample_abs_pos_embed``, which computes in float32."""
    prefix, places = posemb[:, :num_prefix_tokens], posemb[:, num_prefix_tokens:]
    side = math.isqrt(places.shape[1])
    grid = places.transpose(1, 2).unflatten(2, (side, side))
    grid = functional.interpolate(grid, new_size, mode='bicubic', antialias=True)
    return torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=['fp32', 'fp64'])
def test_tokens_of_every_block_on_every_grid(dtype, tolerance, pair, image, distance, monkeypatch):
    source, backbone = pair
    monkeypatch.setattr(vision_transformer, 'resample_abs_pos_embed', resized_in_own_precision)
    theirs = source.model.to(dtype)
    backbone.to(dtype).load_state_dict(source.state)
    arch, prefix = backbone.arch, backbone.num_prefix_tokens
    found = []
    for block in theirs.blocks:
        block.register_forward_hook(lambda module, inputs, out: found.append(out))
    for grid in GRIDS:
        x = image(*(side * arch.patch_size for side in grid)).to(dtype)
        found.clear()
        with torch.no_grad():
            source.features(x)
            found[-1] = theirs.norm(found[-1])
            tokens, ours = backbone.enter_stage(0, x), []
            state, places = tokens
            for j in range(arch.depths[0]):
                state = backbone.run_block(0, j, state, places)
                ours.append(state)
            ours[-1] = backbone.leave_stage(0, ours[-1])
            maps = backbone(x)
        assert places == grid
        assert len(found) == len(ours) == len(maps)
        for a, b, feature_map in zip(ours, found, maps):
            assert distance(a, b) < tolerance
            assert distance(feature_map.flatten(2).transpose(1, 2), b[:, prefix:]) < tolerance


def test_places_count(pair, image):
    """Two networks that both ignore positions would be equal too."""
    source, backbone = pair
    backbone.load_state_dict(source.state)
    x = image(4 * backbone.arch.patch_size, 4 * backbone.arch.patch_size)
    with torch.no_grad():
        turned = backbone(x.transpose(2, 3))[-1].transpose(2, 3)
        shifted = backbone(x.roll(backbone.arch.patch_size, 3))[-1].roll(-1, 3)
        plain = backbone(x)[-1]
    assert (turned - plain).abs().max() > 0.01
    assert (shifted - plain).abs().max() > 0.01


FULL = {
    'dinov2-small': 'vit_small_patch14_dinov2',
    'dinov2-base': 'vit_base_patch14_dinov2',
    'dinov2-large': 'vit_large_patch14_dinov2',
    'dinov2-giant': 'vit_giant_patch14_dinov2',
    'dinov2-small-reg': 'vit_small_patch14_reg4_dinov2',
    'dinov2-base-reg': 'vit_base_patch14_reg4_dinov2',
    'dinov2-large-reg': 'vit_large_patch14_reg4_dinov2',
    'dinov2-giant-reg': 'vit_giant_patch14_reg4_dinov2',
    'dinov3-tiny': 'vit_tiny_patch16_dinov3_qkvb',
    'dinov3-small': 'vit_small_patch16_dinov3_qkvb',
    'dinov3-small-plus': 'vit_small_plus_patch16_dinov3_qkvb',
    'dinov3-base': 'vit_base_patch16_dinov3_qkvb',
    'dinov3-large': 'vit_large_patch16_dinov3_qkvb',
    'dinov3-huge-plus': 'vit_huge_plus_patch16_dinov3_qkvb',
}


@pytest.mark.parametrize('name', FULL)
def test_full_size_networks_have_the_parameters_of_timms(name, build):
    """All but LayerScale, two vectors a block, and the class token's position, where timm has added it."""
    arch = get_arch(name)
    with torch.device('meta'):
        theirs = timm.create_model(FULL[name], num_classes=0)
    ours = count_params(arch)
    folded = 2 * sum(arch.depths) * arch.embed_dims[0]
    added = arch.embed_dims[0] if name.endswith('-reg') else 0
    assert ours - added + folded == sum(p.numel() for p in theirs.parameters())
    assert theirs.blocks[0].attn.num_heads == arch.num_heads[0][0]
    assert theirs.patch_embed.patch_size == (arch.patch_size,) * 2
    state = to_ours({k: v for k, v in theirs.state_dict().items() if not k.startswith('head')}, arch)
    assert sum(v.numel() for k, v in state.items() if 'frequencies' not in k) == ours
