"""The supported versions of the OpenMMLab packages, and the check of the installed ones."""

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
DOCTOR_HINT = 'To find other problems and what to do: python -m upvit_mm.doctor'

# onedl's mmdet warns about this optional package at every import; it is not needed here
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
    version_file = Path(spec.submodule_search_locations[0]) / 'version.py'  # a clone
    found = version_file.is_file() and re.search(
        r"^__version__ = ['\"]([^'\"]+)", version_file.read_text(encoding='utf-8'), re.MULTILINE
    )
    return found.group(1) if found else None


def require_openmmlab() -> None:
    """Raise one ImportError that names every OpenMMLab package that is missing or unsupported.

    If all are there, ``hide_unfit_transformers`` makes them import with any version of transformers.

    Raises:
        ImportError: the message has the found and the supported version of each such package, and the fix.
    """
    problems = [problem for module in SUPPORTED if (problem := version_problem(module))]
    if problems:
        raise ImportError(f'upvit_mm cannot run here: {"; ".join(problems)}.\n{INSTALL_HINT}\n{DOCTOR_HINT}')
    hide_unfit_transformers()


def hide_unfit_transformers() -> None:
    """Import mmpretrain's models and their parts of mmdet without transformers, if they cannot be imported with it.

    Then multimodal models are left out, as if transformers were not installed, and a warning says so. Other code can
    import transformers as before. After mmpretrain's models are imported, this function does nothing.
    """
    if 'mmpretrain.models' in sys.modules or not (problem := transformers_problem()):
        return
    from mmpretrain.utils import dependency

    logging.getLogger('upvit_mm').warning(
        '%s: multimodal models of mmpretrain and mmdet are left out; nothing here needs them; %s',
        problem,
        TRANSFORMERS_HINT,
    )
    dependency.WITH_MULTIMODAL = False  # mmpretrain's own switch; it only asks what is installed
    with _without('transformers'):
        import_module('mmpretrain.models')


@cache
def transformers_problem() -> str | None:
    """The reason why mmpretrain or mmdet would fail with the installed transformers; None if they would not, or without
    it.

    The cause is how they import it: mmpretrain sets classes to None when a name in the same file is missing (``NoneType
    takes no arguments``), and mmdet handles only ImportError.
    """
    if 'transformers' not in sys.modules and find_spec('transformers') is None:
        return None
    from mmpretrain.utils.dependency import WITH_MULTIMODAL

    needed = _needed_of_transformers() if WITH_MULTIMODAL else {('transformers.modeling_utils', 'PreTrainedModel')}
    for module, name in sorted(needed):
        try:
            getattr(import_module(module), name)
        except Exception as error:  # a broken installation can raise almost any error
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
    """Act as if a package were not installed, inside the ``with`` block."""
    own = [name for name in sys.modules if name.partition('.')[0] == package]
    before = {name: sys.modules.pop(name) for name in own}
    sys.modules[package] = None  # Python's mark for a module that cannot be found
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(before)


def version_problem(module: str) -> str | None:
    """The problem of an OpenMMLab module's version, in a few words; None if it is supported."""
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
    """Pass the log of the pure-torch parts of this package to the log of the current mmengine run."""

    def emit(self, record: logging.LogRecord) -> None:
        from mmengine.logging import print_log

        print_log(record.getMessage(), logger='current', level=record.levelno)


def log_into_runs() -> None:
    """Connect the package's own logger to mmengine's; done when ``upvit_mm.models`` is imported."""
    logger = logging.getLogger('upvit_mm')
    if not any(isinstance(handler, RunLogHandler) for handler in logger.handlers):
        logger.addHandler(RunLogHandler())
        logger.setLevel(logging.INFO)


def require_mmcv_ops() -> None:
    """Raise if mmcv was built without its operators, which detectors need; one NMS tests this.

    Raises:
        ImportError: they do not work; the message says what failed, and how to install mmcv with operators.
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
        RuntimeError: mmcv has no operators for this device.
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
