"""Shared by all tests: tiny architectures with odd widths, random weights, and foreign networks to compare with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

pytest_plugins = ['fixtures.detector_zoo', 'fixtures.detectors', 'fixtures.jobs', 'fixtures.tokens']
ROOT = Path(__file__).parents[1]

# every width differs from every other, from block to block too, and q/k from v
TINY = {
    'deit': dict(
        family='deit',
        name='tiny-deit',
        embed_dims=[45],
        depths=[5],
        num_heads=[[3, 2, 1, 4, 3]],
        qk_dims=[[24, 10, 7, 16, 30]],
        v_dims=[[12, 30, 17, 32, 9]],
        qk_scales=[[0.3, 0.4, 0.5, 0.6, 0.2]],
        mlp_hidden_dims=[[50, 23, 64, 31, 40]],
        img_size=64,
    ),
    'pvtv2': dict(
        family='pvtv2',
        name='tiny-pvtv2',
        embed_dims=[16, 24, 35, 40],
        depths=[1, 2, 2, 1],
        num_heads=[[1], [2, 3], [2, 1], [5]],
        qk_dims=[[7], [10, 15], [18, 9], [20]],
        v_dims=[[12], [16, 9], [20, 33], [15]],
        qk_scales=[[0.5], [0.3, 0.4], [0.3, 0.6], [0.7]],
        mlp_hidden_dims=[[19], [30, 17], [44, 21], [33]],
        sr_ratios=[8, 4, 2, 1],
    ),
}
TINY['dinov2'] = TINY['deit'] | dict(family='dinov2', name='tiny-dinov2', num_registers=2, ffn='swiglu')
TINY['dinov3'] = TINY['deit'] | dict(
    family='dinov3', name='tiny-dinov3', num_registers=3, qk_dims=[[24, 12, 8, 16, 30]], ffn='gelu'
)
# what the other code bases can hold: stock structure, q, k and v of one width
STOCK = {
    'deit': dict(family='deit', embed_dims=[48], depths=[3], num_heads=3, mlp_hidden_dims=192, img_size=64),
    'pvtv2': dict(
        family='pvtv2',
        embed_dims=[16, 32, 80, 128],
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 5, 8],
        mlp_hidden_dims=[128, 256, 320, 512],
        sr_ratios=[8, 4, 2, 1],
    ),
}
STOCK['dinov2'] = STOCK['deit'] | dict(family='dinov2')
STOCK['dinov3'] = dict(  # heads of 64 channels, as in published ones: files do not show them
    family='dinov3',
    embed_dims=[128],
    depths=[2],
    num_heads=2,
    mlp_hidden_dims=192,
    num_registers=4,
    ffn='swiglu',
    img_size=64,
)


# ------------------------------------------------------------------ networks


@pytest.fixture(params=['deit', 'pvtv2'])
def family(request) -> str:
    return request.param


@pytest.fixture
def tiny_arch() -> Callable[..., dict]:
    """``tiny_arch(family, **changes)``: the arch mapping of a tiny network."""
    return lambda family, **changes: TINY[family] | changes


@pytest.fixture
def stock_arch() -> Callable[..., dict]:
    """``stock_arch(family, **changes)``: the same, of a structure that other code bases can build."""
    return lambda family, **changes: STOCK[family] | changes


@pytest.fixture
def randomise() -> Callable[..., nn.Module]:
    """``randomise(model, seed)``: every parameter drawn at random, norms and biases included."""
    return _randomise


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """``build(family, arch=None, seed=0, **settings)``: our backbone, by default tiny, randomised, in eval mode."""
    return _build


@pytest.fixture
def image() -> Callable[..., Tensor]:
    """``image(height, width, batch=2, channels=3)``: a random image in float32."""
    return _image


@pytest.fixture
def distance() -> Callable[[Tensor, Tensor], float]:
    """``distance(a, b)``: largest difference, in units of the largest value of ``b``; shapes must agree."""
    return _distance


@pytest.fixture
def identical() -> Callable[[dict, dict], bool]:
    """``identical(a, b)``: whether two state dicts hold the same tensors, bit for bit, in any order."""
    return _identical


def _randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim in (2, 4):  # Linear and convolution: features keep their size
            value *= parameter[0].numel() ** -0.5
        elif parameter.ndim == 1:
            value = 0.3 * value + name.endswith('weight')
        parameter.data.copy_(value)
    return model


def _build(family: str, arch=None, seed: int = 0, **settings) -> nn.Module:
    from upvit_mm.arch.family import FAMILIES
    from upvit_mm.registry import MODELS

    backbone = MODELS.get(f'upvit_mm.{FAMILIES[family].backbone}')
    return _randomise(backbone(TINY[family] if arch is None else arch, **settings), seed).eval()


def _image(height: int, width: int, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def _distance(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


def _identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------- data, configs, registries


@pytest.fixture(scope='session', autouse=True)
def memory_of_annotations(tmp_path_factory) -> Iterator[None]:
    """What is remembered of annotation files stays in the tests' folder, in other processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('UPVIT_MM_CACHE', str(tmp_path_factory.mktemp('memory')))
        yield


@pytest.fixture(scope='session')
def digits_folder(tmp_path_factory) -> Path:
    """``data/digits`` with 8 training and 2 validation scenes of 128 px; not to be changed."""
    from upvit_mm.data.prepare import prepare_digits

    folder = tmp_path_factory.mktemp('data') / 'digits'
    prepare_digits(folder, scenes=8, size=128, seed=0)
    return folder


@pytest.fixture
def scope(monkeypatch) -> Iterator[Callable[[str], None]]:
    """``scope(name)``: sets mmengine's default scope until the test ends."""
    from mmengine.registry import DefaultScope, init_default_scope

    with monkeypatch.context() as patch:
        patch.setattr(DefaultScope, '_instance_dict', DefaultScope._instance_dict.copy())
        yield init_default_scope


# ----------------------------------------------- the same networks elsewhere


@dataclass
class Source:
    """A network of the stock structure as another code base builds it, random, in float64.

    Attributes:
        layout: our name of its tensor layout.
        family: family of its arch.
        model: the network.
        maps: from it and an image to the maps that our backbone returns by default.
        rename: from its tensor names to those of the layout.
    """

    layout: str
    family: str
    model: nn.Module
    maps: Callable[[nn.Module, Tensor], list[Tensor]]
    rename: Callable[[str], str] = str

    def __post_init__(self):
        _randomise(self.model.double()).eval()

    @property
    def state(self) -> dict[str, Tensor]:
        """Backbone tensors."""
        return {self.rename(k): v for k, v in self.model.state_dict().items() if not k.startswith('head')}

    @property
    def head(self) -> dict[str, Tensor]:
        """The classifier head's tensors."""
        return {k: v for k, v in self.model.state_dict().items() if k.startswith('head')}

    @torch.no_grad()
    def features(self, x: Tensor) -> list[Tensor]:
        return self.maps(self.model, x)


def _timm_source(model: str | nn.Module) -> Source:
    model = timm.create_model(model) if isinstance(model, str) else model
    if isinstance(model, Eva):
        return Source('timm DINOv3', 'dinov3', model, _timm_vit_map)
    if isinstance(model, VisionTransformer):
        if hasattr(model.blocks[0].ls1, 'gamma'):
            return Source('timm DINOv2 / ViT with LayerScale', 'dinov2', model, _timm_vit_map)
        return Source('timm / official DeiT', 'deit', model, _timm_vit_map)
    return Source('timm PVTv2', 'pvtv2', model, _timm_pvtv2_maps)


def _timm_vit_map(model: nn.Module, x: Tensor) -> list[Tensor]:
    if isinstance(model, Eva):
        _set_angles(model)
    tokens = model.forward_features(x)[:, model.num_prefix_tokens :]  # (B, N, C)
    return [tokens.transpose(1, 2).unflatten(2, (x.shape[2] // model.patch_embed.patch_size[0], -1))]


def _set_angles(model: nn.Module) -> None:
    """timm computes a DINOv3's angles in float32. A float64 network gets exact ones, of float32 periods as in ours."""
    from upvit_mm.arch.rotary import dense_frequencies

    rope, dtype = model.rope, model.cls_token.dtype
    speeds = dense_frequencies(rope.dim, 1)[: rope.dim // 4, 0].to(dtype)  # of the pairs that turn with y, or x

    def exact(shape):
        places = [2 * (torch.arange(n, dtype=dtype) + 0.5) / n - 1 for n in shape]
        y, x = torch.meshgrid(*places, indexing='ij')
        angles = torch.cat([place.flatten()[:, None] * speeds for place in (y, x)], dim=1).repeat(1, 2)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rope.get_embed = exact if dtype == torch.float64 else partial(type(rope).get_embed, rope)


def _timm_pvtv2_maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    maps, x = [], model.patch_embed(x)
    for stage in model.stages:
        x = stage(x)
        maps.append(x)
    return maps


def _official_pvtv2_name(key: str) -> str:
    """From timm's name; the authors' code is not installed, but timm reads their files (see ``test_keys.py``)."""
    key = re.sub(r'^patch_embed\.', 'patch_embed1.', key)
    for i in range(4):
        key = key.replace(f'stages.{i}.downsample.', f'patch_embed{i + 1}.')
        key = key.replace(f'stages.{i}.blocks.', f'block{i + 1}.').replace(f'stages.{i}.norm.', f'norm{i + 1}.')
    return key.replace('mlp.dwconv.', 'mlp.dwconv.dwconv.')


def _mmdet_source(embed_dims: int, num_layers: list[int], same_eps: bool = True) -> Source:
    """``same_eps``: use the authors' 1e-5 in patch embedding and spatial reduction, where mmdet has 1e-6."""
    from mmdet.models import PyramidVisionTransformerV2

    model = PyramidVisionTransformerV2(embed_dims=embed_dims, num_layers=num_layers)
    for name, module in model.named_modules():
        if same_eps and isinstance(module, nn.LayerNorm) and re.search(r'layers\.\d\.0\.norm|attn\.norm', name):
            module.eps = 1e-5
    return Source('mmdet PVTv2', 'pvtv2', model, lambda m, x: list(m(x)))


def _mmpretrain_source(layout: str = 'mmpretrain DeiT / ViT', family: str = 'deit', **settings) -> Source:
    from mmpretrain.models import VisionTransformer

    arch = dict(embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=192)
    model = VisionTransformer(arch, img_size=64, out_type='featmap', **settings)
    return Source(layout, family, model, lambda m, x: list(m(x)))


def _tiny_timm_vit(**settings) -> Source:
    widths = dict(img_size=64, embed_dim=48, depth=3, num_heads=3, num_classes=7)
    return _timm_source(VisionTransformer(**(widths | settings)))


def _tiny_timm_dinov3(**settings) -> Source:
    """With the settings of timm's ``vit_small_plus_patch16_dinov3``, except its widths."""
    widths = dict(img_size=64, embed_dim=128, depth=2, num_heads=2, mlp_ratio=1.5, num_classes=7)
    dino = dict(init_values=1e-5, rope_type='dinov3', rope_temperature=100, rope_rotate_half=True)
    dino |= dict(use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4, use_fc_norm=False)
    dino |= dict(norm_layer=partial(nn.LayerNorm, eps=1e-5), dynamic_img_size=True, global_pool='token')
    dino |= dict(swiglu_mlp=True, swiglu_align_to=8, qkv_bias=True)
    return _timm_source(Eva(**(widths | dino | settings)))


def _tiny_timm_pvtv2(**settings) -> Source:
    widths = dict(embed_dims=(16, 32, 80, 128), num_heads=(1, 2, 5, 8), depths=(1, 1, 2, 1))
    return _timm_source(PyramidVisionTransformerV2(num_classes=7, **widths, **settings))


_SOURCES = {
    'timm-deit': _tiny_timm_vit,
    'mmpretrain-deit': _mmpretrain_source,
    'timm-dinov2': partial(_tiny_timm_vit, init_values=1e-5),
    'mmpretrain-dinov2': partial(_mmpretrain_source, 'mmpretrain DINOv2', 'dinov2', layer_scale_init_value=1e-5),
    'timm-dinov3': _tiny_timm_dinov3,
    'timm-pvtv2': _tiny_timm_pvtv2,
    'official-pvtv2': lambda: replace(_tiny_timm_pvtv2(), layout='official PVTv2', rename=_official_pvtv2_name),
    'mmdet-pvtv2': lambda: _mmdet_source(embed_dims=16, num_layers=[1, 1, 2, 1]),
}


@pytest.fixture(scope='session', params=list(_SOURCES))
def source(request) -> Source:
    """A tiny foreign network of each known layout, in turn; not to be changed."""
    return _SOURCES[request.param]()


@pytest.fixture(scope='session')
def tiny_source() -> Callable[..., Source]:
    """``tiny_source(name, **settings)``: one of them, made anew; settings are of its class."""
    return lambda name, **settings: _SOURCES[name](**settings)


@pytest.fixture(scope='session')
def timm_source() -> Callable[[str | nn.Module], Source]:
    """``timm_source(model)``: a network of timm, given or by name at full size."""
    return _timm_source


@pytest.fixture(scope='session')
def mmdet_source() -> Callable[..., Source]:
    """``mmdet_source(embed_dims, num_layers, same_eps=True)``: mmdet's PVTv2."""
    return _mmdet_source


# ------------------------------------------------------------------ processes


@pytest.fixture
def run_python() -> Callable[..., str]:
    """``run_python(code)``: what a fresh interpreter prints; it must end well."""
    return _run_python


def _run_python(code: str) -> str:
    env = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
