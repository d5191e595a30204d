"""Checks of the installation."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import upvit_mm
from upvit_mm.arch.family import FAMILIES
from upvit_mm.doctor.findings import Finding, check, error, message_of, ok, warning
from upvit_mm.openmmlab import (
    SUPPORTED,
    TRANSFORMERS_HINT,
    hide_unfit_transformers,
    installed_version,
    transformers_problem,
    try_mmcv_ops,
    version_problem,
)

PYTHON = '>=3.10,<3.13'  # as in pyproject.toml
REQUIREMENTS = Path(__file__).parents[2] / 'requirements/runtime.txt'  # of a clone that is not installed
ARCHS = {  # tiny networks, one for each family
    family.backbone: dict(family=name, embed_dims=8, depths=1, num_heads=1, mlp_hidden_dims=8, img_size=32)
    for name, family in FAMILIES.items()
}
STUDENT = dict(
    backbone=dict(type='upvit_mm.UPDeiT', arch=ARCHS['UPDeiT'], out_type='cls_token'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=2),
    teacher=None,
    distill={},
)
BUILDS = {  # types to build by name, and the registry
    **{backbone: ('MODELS', dict(arch=arch)) for backbone, arch in ARCHS.items()},
    'SimpleFeaturePyramid': ('MODELS', dict(in_channels=8)),
    'DistillClassifier': ('MODELS', STUDENT),
    'TokenConsistencyHook': ('HOOKS', dict(arch=ARCHS['UPDeiT'], checkpoint='dense.pth')),
}
INSTALL = 'install all packages from one line of OpenMMLab (README, Installation)'
MMCV = (
    'mmcv was built without torch or for another one: uninstall mmcv, mmcv-lite, onedl-mmcv, then with torch in place '
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir onedl-mmcv (stock line: mmcv)'
)
NOT_FOUND = 'install upvit_mm into this environment: pip install --no-build-isolation --no-deps -e .'
PAIR = (
    'torch and torchvision go in pairs (2.10.0 and 0.25.0, 2.4.1 and 0.19.1): uninstall both, then install the pair in '
    'one command from one index'
)
REBUILT = 'install a build of it for this numpy (pip install --force-reinstall --no-deps), or '
NEEDS_CUDA_BUILD = 'for the GPU install a CUDA build of torch and torchvision, then mmcv again'
NUMPY = 'the numpy of your line: onedl <2.3, stock <2'


@check('environment', remedy='use Python 3.10, 3.11 or 3.12')
def python() -> Finding:
    """The version of Python."""
    version = platform.python_version()
    found = f'Python {version}, upvit_mm {upvit_mm.__version__} in {Path(upvit_mm.__file__).parent}'
    if SpecifierSet(PYTHON).contains(version, prereleases=True):
        return ok(found)
    return error(f'{found}; supported: {PYTHON}')


@check('environment', remedy='pip install upvit_mm again, or keep requirements/runtime.txt beside it')
def requirements() -> Iterator[Finding]:
    """Packages that every OpenMMLab line needs here, for example timm."""
    try:
        lines = metadata.requires('upvit_mm') or []
    except metadata.PackageNotFoundError:
        lines = REQUIREMENTS.read_text(encoding='utf-8').splitlines()
    met = []
    for requirement in (Requirement(line) for line in lines if line.strip() and not line.startswith('#')):
        if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
            continue
        version = _version_of(requirement.name)
        if version and requirement.specifier.contains(version, prereleases=True):
            met.append(f'{requirement.name} {version}')
        else:
            yield error(f'{requirement} is needed, found: {version or "none"}', f"pip install '{requirement}'")
    yield ok(', '.join(met))


@check('environment', remedy='install torch again, before everything that is built for it (README, Installation)')
def torch() -> Finding:
    """torch imports and multiplies matrices."""
    import torch

    build = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU'
    total = torch.ones(2, 2).matmul(torch.ones(2, 2)).sum().item()
    assert total == 8, f'the product of two 2x2 matrices of ones has sum {total}'
    return ok(f'torch {torch.__version__}, {build} build')


@check(
    'environment',
    needs=('torch',),
    remedy=PAIR,
)
def torchvision() -> Finding:
    """torchvision fits torch, and its operators run."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.1, 0.9]), 0.5).tolist() == [1], 'its nms gives wrong results'
    found = f'torchvision {torchvision.__version__}'
    for requirement in map(Requirement, metadata.requires('torchvision') or []):
        if requirement.name == 'torch' and not requirement.specifier.contains(torch.__version__, prereleases=True):
            return warning(f'{found} runs, but was released for {requirement}')
    return ok(f'{found}, its operators run')


@check('environment', needs=('torch',), remedy='install the numpy of your line: onedl numpy<2.3, stock numpy<2')
def numpy() -> Finding:
    """Packages that were compiled for another numpy may fail only when they are used."""
    import numpy as np
    import torch

    assert torch.from_numpy(np.arange(3.0)).numpy().sum() == 3
    return ok(f'numpy {np.__version__}, torch reads and gives its arrays')


@check(
    'environment',
    needs=('numpy',),
    remedy='on a machine without a screen replace opencv-python by opencv-python-headless or install libgl1 and '
    f'libglib2.0-0; when numpy is blamed, {REBUILT}{NUMPY} (stock: opencv-python<4.12)',
)
def opencv() -> Finding:
    """OpenCV imports and converts an image."""
    import cv2
    import numpy as np

    grey = cv2.cvtColor(np.full((2, 2, 3), 7, np.uint8), cv2.COLOR_BGR2GRAY)
    assert grey.tolist() == [[7, 7], [7, 7]], f'a grey picture became {grey.tolist()}'
    return ok(f'OpenCV {cv2.__version__}')


@check('environment', needs=('numpy',), remedy=f'pip install pycocotools; when numpy is blamed, {REBUILT}{NUMPY}')
def pycocotools() -> Finding:
    """pycocotools imports and encodes a mask."""
    import numpy as np
    from pycocotools import mask

    area = mask.area(mask.encode(np.asfortranarray(np.eye(3, dtype=np.uint8))))
    assert area == 3, f'a mask of 3 pixels has area {area}'
    return ok(f'pycocotools {_version_of("pycocotools")}')


@check('environment', needs=('torch',), remedy=INSTALL)
def openmmlab() -> Iterator[Finding]:
    """Each package has a supported version and imports; an incompatible pair raises when it is imported."""
    for module, (low, high, distributions) in SUPPORTED.items():
        name = (_distributions(module) or [distributions[_line() == 'stock']])[0]
        remedy = f"pip install '{name}>={low},<{high}'{' --no-build-isolation' if module == 'mmcv' else ''}"
        if problem := version_problem(module):
            yield error(problem, f'{remedy}, or {INSTALL}')
            continue
        try:
            import_module(module)
        except Exception as problem:
            yield error(f'{module} {installed_version(module)} does not import: {message_of(problem)}')
        else:
            yield ok(f'{module} {installed_version(module)} ({", ".join(_distributions(module)) or "source checkout"})')


@check('environment', needs=('openmmlab',), remedy=f'nothing, or uninstall transformers; {TRANSFORMERS_HINT}')
def transformers() -> Finding:
    """A version of transformers that mmpretrain's and mmdet's own tools cannot import; ours import both without it."""
    if problem := transformers_problem():
        return warning(f'{problem}: mmpretrain and mmdet do not import beside it; the tools of this package hide it')
    version = _version_of('transformers')
    return ok(f'transformers {version}' if version else 'transformers is not installed, and not needed')


@check('environment', remedy=INSTALL)
def one_line() -> Iterator[Finding]:
    """The distributions of both lines have the same modules: one overwrites the files of the other."""
    installed = {module: _distributions(module) for module in SUPPORTED}
    everything = sorted(name for names in installed.values() for name in names)
    twice = {module: names for module, names in installed.items() if len(names) > 1}
    for module, names in twice.items():
        remedy = f'pip uninstall {" ".join(names)}, then install one of them again'
        yield error(f'{module} is installed {len(names)} times: {", ".join(names)}', remedy)
    lines = sorted({'onedl' if name.startswith('onedl-') else 'stock' for name in everything})
    if len(lines) > 1:
        yield warning(f'the onedl and the stock line are mixed: {", ".join(everything)}')
    elif lines and not twice:
        yield ok(f'one line, {lines[0]}: {", ".join(everything)}')


@check('environment', needs=('openmmlab', 'opencv'), remedy=MMCV)
def mmcv_operators() -> Finding:
    """mmcv's operators run on the CPU."""
    if 'mmcv-lite' in _distributions('mmcv'):
        return error('mmcv-lite has no operators, which detectors need')
    try_mmcv_ops()
    return ok('nms and roi_align of mmcv run on the CPU')


@check('environment', needs=('openmmlab',), remedy='with the stock line use torch 2.4 or 2.5, or take the onedl line')
def mmengine_checkpoints() -> Finding:
    """From 2.6 on torch refuses the extra data in mmengine's checkpoints, unless mmengine allows it."""
    import torch
    from mmengine.logging import HistoryBuffer
    from mmengine.runner import CheckpointLoader

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, 'epoch_1.pth'))
        torch.save({'message_hub': {'loss': HistoryBuffer([1.0], [1])}}, path)
        CheckpointLoader.load_checkpoint(path, map_location='cpu')
    return ok('mmengine reads its own checkpoints, to test and to resume')


@check(
    'environment',
    needs=('torch',),
    remedy='this build of torch has no code for this GPU, or the driver is too old for it: install a build for it',
)
def cuda() -> Finding:
    """torch can use the GPU, if there is one."""
    import torch

    build = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU'
    if not torch.cuda.is_available():
        found = f'the {build} build of torch sees no GPU: everything runs on the CPU'
        if not shutil.which('nvidia-smi'):
            return ok(found)
        remedy = 'check nvidia-smi (driver) and CUDA_VISIBLE_DEVICES' if torch.version.cuda else NEEDS_CUDA_BUILD
        return warning(f'{found}, though nvidia-smi is installed', remedy)
    total = torch.ones(4, device='cuda').sum().item()
    assert total == 4, f'the sum of four ones on the GPU is {total}'
    free, memory = torch.cuda.mem_get_info()
    found = f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    return ok(f'{found}, {free / 1e9:.1f} of {memory / 1e9:.1f} GB free on the first')


@check(
    'environment',
    needs=('mmcv_operators', 'cuda'),
    remedy='mmcv was built without CUDA: install it again where nvcc is, with FORCE_CUDA=1 when no GPU is seen there',
)
def mmcv_operators_on_gpu() -> Finding | tuple:
    """mmcv's operators run on the GPU, if there is one."""
    import torch

    if not torch.cuda.is_available():
        return ()
    try_mmcv_ops('cuda')
    return ok('nms and roi_align of mmcv run on the GPU')


@check('environment', needs=('openmmlab', 'requirements'), remedy=NOT_FOUND)
def registry() -> Iterator[Finding]:
    """All types of this package build from either package's registry, without custom_imports."""
    hide_unfit_transformers()
    for scope in ('mmdet', 'mmpretrain'):
        registries = import_module(f'{scope}.registry')
        for name, (kind, settings) in BUILDS.items():
            try:
                getattr(registries, kind).build(dict(settings, type=f'upvit_mm.{name}'))
            except Exception as problem:
                yield error(f"type='upvit_mm.{name}' does not build from {scope}: {message_of(problem)}")
                return
    yield ok(f'{", ".join(BUILDS)} build by name from mmdet and mmpretrain')


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _distributions(module: str) -> list[str]:
    """The installed distributions that provide a module."""
    return [name for name in SUPPORTED[module][2] if _version_of(name)]


def _line() -> str:
    """The line of most installed packages."""
    names = [name for module in SUPPORTED for name in _distributions(module)]
    return 'stock' if sum(name.startswith('onedl-') for name in names) * 2 < len(names) else 'onedl'
