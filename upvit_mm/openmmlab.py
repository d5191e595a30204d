"""Which versions of the OpenMMLab packages this package runs on, and the check of what is installed."""

from __future__ import annotations

import ast
import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.version import InvalidVersion, Version

# module -> (lowest version, first version too new, distributions that provide the module)
SUPPORTED = {
    'mmengine': ('0.10.3', '1.0.0', ('onedl-mmengine', 'mmengine')),
    'mmcv': ('2.1.0', '2.4.0', ('onedl-mmcv', 'mmcv', 'mmcv-lite')),
    'mmdet': ('3.3.0', '4.0.0', ('onedl-mmdetection', 'mmdet')),
    'mmpretrain': ('1.2.0', '2.0.0', ('onedl-mmpretrain', 'mmpretrain')),
}
INSTALL_HINT = (
    'Install one of the two supported lines, for example\n'
    '  onedl: torch==2.10.0 onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmdetection==3.5.1 '
    'onedl-mmpretrain==1.3.6\n'
    '  stock: torch==2.4.1 mmengine==0.10.7 mmcv==2.1.0 mmdet==3.3.0 mmpretrain==1.2.0\n'
    'with `make setup` or `make setup STACK=stock` in a clone; by hand torch first, then mmcv without build isolation.'
)
TRANSFORMERS_HINT = 'for multimodal models: pip install "transformers<5" (stock line: "transformers<4.52")'
DOCTOR_HINT = 'What else is wrong here, and what to do about it: python -m upvit_mm.doctor'

# onedl's mmdet says so whenever it is imported without an optional package, which nothing here needs
warnings.filterwarnings('ignore', message='faster_coco_eval is not installed', category=UserWarning)


def installed_version(module: str) -> str | None:
    """Version of an OpenMMLab module without importing it; None when it is not installed."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    for distribution in SUPPORTED[module][2]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    version_file = Path(spec.submodule_search_locations[0]) / 'version.py'  # a source checkout
    found = version_file.is_file() and re.search(
        r"^__version__ = ['\"]([^'\"]+)", version_file.read_text(encoding='utf-8'), re.MULTILINE
    )
    return found.group(1) if found else None


def require_openmmlab() -> None:
    """Raise one ImportError that names every OpenMMLab package that is missing or out of its window.

    Where all are there, ``hide_unfit_transformers`` makes them import beside any transformers.

    Raises:
        ImportError: with the found and the supported version of each such package, and the fix.
    """
    problems = [problem for module in SUPPORTED if (problem := version_problem(module))]
    if problems:
        raise ImportError(f'upvit_mm cannot run here: {"; ".join(problems)}.\n{INSTALL_HINT}\n{DOCTOR_HINT}')
    hide_unfit_transformers()


def hide_unfit_transformers() -> None:
    """Import mmpretrain's models and what they take from mmdet without transformers, if they cannot be with it.

    Multimodal models are then left out, as where transformers is not installed, and a warning says so. Everybody else
    can import transformers as before. Does nothing once mmpretrain's models are imported.
    """
    if 'mmpretrain.models' in sys.modules or not (problem := transformers_problem()):
        return
    from mmpretrain.utils import dependency

    logging.getLogger('upvit_mm').warning(
        '%s: multimodal models of mmpretrain and mmdet are left out, nothing here needs them; %s',
        problem,
        TRANSFORMERS_HINT,
    )
    dependency.WITH_MULTIMODAL = False  # mmpretrain's own switch, set by what is installed, not by what imports
    with _without('transformers'):
        import_module('mmpretrain.models')


@cache
def transformers_problem() -> str | None:
    """What mmpretrain or mmdet would fail for beside the installed transformers; None where all is well, or it is not
    installed.

    The fault is in how they try it: mmpretrain sets classes to None when a name that the same file imports has gone
    (``NoneType takes no arguments``), and mmdet expects no error but ImportError.
    """
    if 'transformers' not in sys.modules and find_spec('transformers') is None:
        return None
    from mmpretrain.utils.dependency import WITH_MULTIMODAL

    needed = _needed_of_transformers() if WITH_MULTIMODAL else {('transformers.modeling_utils', 'PreTrainedModel')}
    for module, name in sorted(needed):
        try:
            getattr(import_module(module), name)
        except Exception as error:  # a broken installation raises nearly anything
            reason = ' '.join(str(error).split())[:200]
            return f'{_described("transformers")} cannot give {module}.{name} ({type(error).__name__}: {reason})'
    return None


def _described(distribution: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return f'{distribution} {metadata.version(distribution)}'
    return distribution


def _needed_of_transformers() -> set[tuple[str, str]]:
    """Module and name of everything that the files of ``mmpretrain.models`` import from transformers."""
    needed = set()
    (folder,) = find_spec('mmpretrain').submodule_search_locations
    for path in Path(folder, 'models').rglob('*.py'):
        if 'transformers' in (text := path.read_text(encoding='utf-8')):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and (node.module or '').partition('.')[0] == 'transformers':
                    needed |= {(node.module, alias.name) for alias in node.names}
    return needed


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """As if a package were not installed; afterwards it is as before."""
    own = [name for name in sys.modules if name.partition('.')[0] == package]
    before = {name: sys.modules.pop(name) for name in own}
    sys.modules[package] = None  # how Python notes that a module is not to be found
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(before)


def version_problem(module: str) -> str | None:
    """What is wrong with the version of an OpenMMLab module, in a few words; None when it is supported."""
    low, high, _ = SUPPORTED[module]
    version = installed_version(module)
    if version is None:
        return f'{module} is not installed (supported: >={low},<{high})'
    return None if _within(version, low, high) else f'{module} is {version} (supported: >={low},<{high})'


def _within(version: str, low: str, high: str) -> bool:
    try:
        return Version(low) <= Version(version) < Version(high)
    except InvalidVersion:
        return False


class RunLogHandler(logging.Handler):
    """Hands what the pure-torch parts of this package log to the log of the current mmengine run."""

    def emit(self, record: logging.LogRecord) -> None:
        from mmengine.logging import print_log

        print_log(record.getMessage(), logger='current', level=record.levelno)


def log_into_runs() -> None:
    """Let the package's own logger write into mmengine's; done when ``upvit_mm.models`` is imported."""
    logger = logging.getLogger('upvit_mm')
    if not any(isinstance(handler, RunLogHandler) for handler in logger.handlers):
        logger.addHandler(RunLogHandler())
        logger.setLevel(logging.INFO)


def require_mmcv_ops() -> None:
    """Raise unless mmcv was built with its operators, which detectors need; shown by one NMS.

    Raises:
        ImportError: what failed, and how to install mmcv so that it has them.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'mmcv cannot import OpenCV ({error}). On a machine without a screen install its system libraries (Debian: '
            f'libgl1 libglib2.0-0) or replace opencv-python by opencv-python-headless.\n{DOCTOR_HINT}'
        ) from error
    try:
        try_mmcv_ops()
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ImportError(
            f'mmcv {installed_version("mmcv")} has no working operators ({error}). It was built without torch or for '
            'another one: uninstall it, then `pip install --no-build-isolation --no-cache-dir` it with torch in place.'
            f'\n{DOCTOR_HINT}'
        ) from error


def try_mmcv_ops(device: str = 'cpu') -> None:
    """Run one NMS and one RoIAlign of mmcv.

    Args:
        device: ``'cpu'`` or ``'cuda'``.

    Raises:
        ImportError: mmcv has no operators, or they give wrong results.
        RuntimeError: it has none for this device.
    """
    import torch
    from mmcv.ops import nms, roi_align

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]], device=device)
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    if kept.tolist() != [0, 2]:
        raise ImportError(f'mmcv.ops.nms kept boxes {kept.tolist()} of three, 0 and 2 are right')
    ramp = torch.arange(4.0, device=device).repeat(1, 1, 4, 1)  # every pixel holds its column; expand() is misread
    pooled = roi_align(ramp, torch.tensor([[0.0, 1.0, 0.0, 3.0, 2.0]], device=device), (1, 1), 1.0, 1, 'avg', True)
    if abs(pooled.item() - 1.5) > 1e-4:  # columns 1 to 3 with pixel centres at .5
        raise ImportError(f'mmcv.ops.roi_align gave {pooled.item()} on a ramp, 1.5 is right')
