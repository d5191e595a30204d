"""Shared by all tests: tiny architectures with odd widths, and random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

FIXTURES = ('detector_zoo', 'detectors', 'foreign', 'gpus', 'jobs', 'tokens')
pytest_plugins = [f'fixtures.{name}' for name in FIXTURES]
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
    from fixtures.foreign import randomised

    return randomised


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


def _build(family: str, arch=None, seed: int = 0, **settings) -> nn.Module:
    from fixtures.foreign import randomised

    from upvit_mm.arch.family import FAMILIES
    from upvit_mm.registry import MODELS

    backbone = MODELS.get(f'upvit_mm.{FAMILIES[family].backbone}')
    return randomised(backbone(TINY[family] if arch is None else arch, **settings), seed).eval()


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


# ------------------------------------------------------------------ processes


@pytest.fixture(scope='session')
def run_python() -> Callable[..., str]:
    """``run_python(code)``: what a fresh interpreter prints; it must end well."""
    return _run_python


def _run_python(code: str) -> str:
    env = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
