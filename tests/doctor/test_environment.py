"""What is found in broken installations."""

from __future__ import annotations

import pickle
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import upvit_mm
from upvit_mm.doctor import environment
from upvit_mm.doctor.findings import CHECKS, carry_out, examine
from upvit_mm.openmmlab import SUPPORTED, require_mmcv_ops, require_openmmlab

ROOT = Path(__file__).parents[2]
ENVIRONMENT = [check for check in CHECKS.values() if check.section == 'environment']
ONEDL = 'onedl-mmengine' in {name.lower() for d in metadata.distributions() if (name := d.metadata['Name'])}


@pytest.fixture
def one(find):
    """``one(name)``: the only finding of a check."""

    def single(name):
        (finding,) = find(name)
        assert finding.check == name
        return finding

    return single


def test_this_environment_is_healthy(monkeypatch):
    monkeypatch.setattr(environment.shutil, 'which', lambda name: None)  # a GPU that torch cannot see is a warning
    findings = list(examine(ENVIRONMENT, carry_out))
    assert {finding.status for finding in findings} == {'ok'}
    assert [finding.check for finding in findings if finding.check == 'openmmlab'] == ['openmmlab'] * 4
    expected = {check.name for check in ENVIRONMENT} - (
        set() if torch.cuda.is_available() else {'mmcv_operators_on_gpu'}
    )
    assert {finding.check for finding in findings} == expected
    found = {finding.check: finding.found for finding in findings}
    assert f'upvit_mm {upvit_mm.__version__} in {ROOT / "upvit_mm"}' in found['python']
    assert re.search(r'timm 1\.\d', found['requirements'])
    assert found['one_line'].startswith(f'one line, {"onedl" if ONEDL else "stock"}: ')


# ------------------------------------------------------- Python, requirements


def test_python(one, monkeypatch):
    assert f'requires-python = "{environment.PYTHON}"' in (ROOT / 'pyproject.toml').read_text()
    for version, status in {'3.9.19': 'error', '3.10.0': 'ok', '3.12.9': 'ok', '3.13.0': 'error'}.items():
        monkeypatch.setattr(environment.platform, 'python_version', lambda version=version: version)
        assert one('python').status == status
    assert one('python').remedy == 'use Python 3.10, 3.11 or 3.12'


def test_requirements(find, monkeypatch):
    lines = ['timm>=99', 'no-such-thing', 'packaging', "ruff>=99; extra == 'tests'"]
    monkeypatch.setattr(environment.metadata, 'requires', lambda name: lines)
    old, missing, fine = find('requirements')
    assert (old.status, old.found) == ('error', f'timm>=99 is needed, found: {metadata.version("timm")}')
    assert old.remedy == "pip install 'timm>=99'"
    assert missing.found == 'no-such-thing is needed, found: none'
    assert fine.found == f'packaging {metadata.version("packaging")}'


def test_requirements_of_a_checkout(one, monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, 'requires', absent)
    assert f'timm {metadata.version("timm")}' in one('requirements').found


# ---------------------------------------------------------- compiled packages


@pytest.mark.parametrize(
    ('check', 'module', 'line', 'remedy'),
    [
        ('torchvision', 'torchvision', "raise RuntimeError('operator torchvision::nms does not exist')", 'go in pairs'),
        ('opencv', 'cv2', "raise ImportError('libGL.so.1: cannot open shared object file')", 'opencv-python-headless'),
        ('pycocotools', 'pycocotools', "raise ValueError('numpy.dtype size changed')", 'stock <2'),
        ('torch', 'torch', "raise OSError('libcudart.so.12: cannot open shared object file')", 'install torch again'),
    ],
)
def test_imports_that_fail(one, broken, check, module, line, remedy):
    broken(module, line)
    finding = one(check)
    assert finding.status == 'error'
    kind, message = re.match(r"raise (\w+)\('(.*)'\)", line).groups()
    assert finding.found == (message if kind == 'OSError' else f'{kind}: {message}')
    assert remedy in finding.remedy


def test_torchvision_of_another_torch(one, monkeypatch):
    monkeypatch.setattr(environment.metadata, 'requires', lambda name: ['numpy', 'torch==1.0'])
    finding = one('torchvision')
    assert finding.status == 'warning'
    assert finding.found.endswith('runs, but was released for torch==1.0')


def test_numpy_that_torch_was_not_built_for(one, monkeypatch):
    def refuse(array):
        raise RuntimeError('Numpy is not available')

    monkeypatch.setattr(torch, 'from_numpy', refuse)
    assert (one('numpy').status, one('numpy').found) == ('error', 'RuntimeError: Numpy is not available')


# ------------------------------------------------------------------ OpenMMLab


def test_versions(find, distribution, monkeypatch):
    distribution('onedl-mmdetection', '2.28.2')
    monkeypatch.setitem(SUPPORTED, 'mm_absent', ('1.0', '2.0', ('onedl-absent', 'absent')))
    findings = find('openmmlab')
    assert [finding.status for finding in findings] == ['ok', 'ok', 'error', 'ok', 'error']
    assert findings[2].found == 'mmdet is 2.28.2 (supported: >=3.3.0,<4.0.0)'
    assert findings[2].remedy.startswith("pip install 'onedl-mmdetection>=3.3.0,<4.0.0'")
    assert findings[4].found == 'mm_absent is not installed (supported: >=1.0,<2.0)'
    assert findings[4].remedy.startswith(f"pip install '{'onedl-' if ONEDL else ''}absent>=1.0,<2.0'")


def test_packages_that_refuse_each_other(find, broken):
    message = 'MMCV==2.3.6 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.'
    broken('mmdet', f'raise AssertionError({message!r})')
    findings = find('openmmlab')
    assert [finding.status for finding in findings] == ['ok', 'ok', 'error', 'ok']
    assert findings[2].found.endswith(f'does not import: AssertionError: {message}')
    assert 'one line of OpenMMLab' in findings[2].remedy


def test_transformers_that_hinder(one, monkeypatch):
    monkeypatch.setattr(environment, '_version_of', lambda name: '4.40.0')
    assert (one('transformers').status, one('transformers').found) == ('ok', 'transformers 4.40.0')
    problem = 'transformers 5.17.0 cannot give transformers.pytorch_utils.prune_linear_layer (ImportError: gone)'
    monkeypatch.setattr(environment, 'transformers_problem', lambda: problem)
    finding = one('transformers')
    assert finding.status == 'warning'
    assert (
        finding.found == f'{problem}: mmpretrain and mmdet do not import beside it; the tools of this package hide it'
    )
    assert 'pip install "transformers<5" (stock line: "transformers<4.52")' in finding.remedy


def test_both_lines(find, distribution):
    distribution('mmdet' if ONEDL else 'onedl-mmdetection', '3.3.0')
    twice, mixed = find('one_line')
    assert (twice.status, mixed.status) == ('error', 'warning')
    assert twice.found == 'mmdet is installed 2 times: onedl-mmdetection, mmdet'
    assert twice.remedy.startswith('pip uninstall onedl-mmdetection mmdet')
    assert 'the onedl and the stock line are mixed' in mixed.found


def test_mmcv_without_operators(one, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    finding = one('mmcv_operators')
    assert finding.status == 'error'
    assert 'mmcv.ops' in finding.found
    assert '--no-build-isolation' in finding.remedy


def test_errors_of_the_package_name_the_doctor(monkeypatch):
    command = 'python -m upvit_mm.doctor'
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    monkeypatch.setitem(SUPPORTED, 'mm_absent', ('1.0', '2.0', ('absent',)))
    for require in (require_mmcv_ops, require_openmmlab):
        with pytest.raises(ImportError) as caught:
            require()
        assert str(caught.value).splitlines()[-1].endswith(f': {command}')


def test_mmcv_lite(one, distribution):
    distribution('mmcv-lite', '2.1.0')
    assert (one('mmcv_operators').status, one('mmcv_operators').found.split()[0]) == ('error', 'mmcv-lite')


def test_mmengine_that_torch_refuses(one, monkeypatch):
    def refuse(*args, **kwargs):
        raise pickle.UnpicklingError('Weights only load failed.')

    monkeypatch.setattr(torch, 'load', refuse)
    finding = one('mmengine_checkpoints')
    assert (finding.status, finding.found) == ('error', 'UnpicklingError: Weights only load failed.')
    assert 'torch 2.4 or 2.5' in finding.remedy


def test_a_name_that_the_registry_lacks(one, monkeypatch):
    from upvit_mm.models import SimpleFeaturePyramid
    from upvit_mm.registry import MODELS

    monkeypatch.delitem(MODELS.module_dict, SimpleFeaturePyramid.__name__)
    finding = one('registry')
    assert finding.status == 'error'
    assert finding.found.startswith("type='upvit_mm.SimpleFeaturePyramid' does not build from mmdet: KeyError")


# ------------------------------------------------------------------------ GPU


@pytest.mark.parametrize(('built_for', 'remedy'), [('12.8', 'CUDA_VISIBLE_DEVICES'), (None, 'install a CUDA build')])
def test_a_gpu_that_torch_does_not_see(one, monkeypatch, built_for, remedy):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.version, 'cuda', built_for)
    for path, status in ((None, 'ok'), ('/usr/bin/nvidia-smi', 'warning')):
        monkeypatch.setattr(environment.shutil, 'which', lambda name, path=path: path)
        assert one('cuda').status == status
    assert remedy in one('cuda').remedy


def test_a_gpu_that_torch_has_no_code_for(one, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError('CUDA error: no kernel image is available for execution on the device')

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch, 'ones', refuse)
    assert (one('cuda').status, 'no kernel image' in one('cuda').found) == ('error', True)


def test_a_gpu(one, monkeypatch):
    ones = torch.ones
    monkeypatch.setattr(torch, 'ones', lambda *size, device: ones(*size))
    for name, value in {
        'is_available': True,
        'device_count': 8,
        'get_device_name': 'Card',
        'mem_get_info': (70e9, 80e9),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert one('cuda').found == '8 x Card, 70.0 of 80.0 GB free on the first'


def test_mmcv_without_operators_for_the_gpu(one, find, monkeypatch):
    devices = []

    def refuse(device):
        devices.append(device)
        raise RuntimeError('nms_impl: implementation for device cuda:0 not found.')

    monkeypatch.setattr(environment, 'try_mmcv_ops', refuse)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert find('mmcv_operators_on_gpu') == []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    finding = one('mmcv_operators_on_gpu')
    assert (finding.status, devices) == ('error', ['cuda'])
    assert 'FORCE_CUDA=1' in finding.remedy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_mmcv_operators_on_this_gpu(one):
    assert one('mmcv_operators_on_gpu').status == 'ok'
