"""Write an ONNX file that is verified: traced, run at other sizes, compared with torch, then renamed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from upvit_mm.arch.size import Size
from upvit_mm.export.parts import Part
from upvit_mm.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from onnxruntime import InferenceSession

INPUT = 'image'
OPSETS = range(13, 21)  # what torch's tracing exporter can do with these networks
TOLERANCE = 1e-4  # of an output's largest magnitude
INSTALL = 'pip install "onnx>=1.17,<2" "onnxruntime>=1.20,<2" "ml_dtypes<0.6"'


def require_onnx() -> None:
    """Raise unless onnx and onnxruntime are installed.

    Raises:
        ImportError: what is missing, and the command that installs it.
    """
    if missing := [name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]:
        raise ImportError(f'ONNX export needs {" and ".join(missing)}: {INSTALL}')


def write_onnx(part: Part, path: str | Path, sizes: Sequence[Size], opset: int = 17) -> dict[Size, float]:
    """Write a part with dynamic batch, height and width, verified at some sizes.

    Torch's tracing exporter is used: every torch from 2.4 on has it. A trace can silently keep the size that it was
    made at. So nothing is written before onnxruntime gives the right numbers at the other sizes.

    Args:
        part: the network.
        path: the file; an older file is replaced only by a verified one.
        sizes: ``(height, width)`` in pixels to verify it at, including odd ones; the smallest is run with two images.
        opset: opset of ONNX, in ``OPSETS``.

    Returns:
        By size the largest difference from torch over all outputs, in units of the output's largest magnitude.

    Raises:
        ImportError: onnx or onnxruntime is missing.
        OSError: ``path`` cannot be written.
        ValueError: a size below the backbone's smallest side, another opset, or a difference above ``TOLERANCE``.
    """
    require_onnx()
    if opset not in OPSETS:
        raise ValueError(f'opset = {opset}: must lie in {OPSETS[0]} to {OPSETS[-1]}.')
    smallest = min(sizes, key=math.prod)
    images = {size: part.images(*size, batch=2 if size == smallest else 1) for size in sizes}
    differences = {}

    def write(file: Path) -> None:
        _trace(part, file, opset)
        session = open_session(file)
        for size in sizes:
            differences[size] = _difference(part, session, images[size])
            if not differences[size] <= TOLERANCE:
                raise ValueError(
                    f'{path}: at {size[0]}x{size[1]} onnxruntime differs from torch by {differences[size]:.1e} of the '
                    f'largest value, more than {TOLERANCE:.0e}; nothing was written. Export only the backbone if the '
                    'trace cannot follow the neck or head of another package.'
                )

    try:
        write_atomically(path, write)
    except OSError as error:
        raise OSError(f'{path} cannot be written ({error}); name a file in a folder that you may write to.') from error
    return differences


def open_session(path: str | Path) -> InferenceSession:
    """The file in onnxruntime on the CPU, with as many threads as torch has."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def run_session(session: InferenceSession, images: Tensor) -> list[np.ndarray]:
    """The outputs for preprocessed images ``(B, c, h, w)``."""
    return session.run(None, {INPUT: images.numpy()})


def _trace(part: Part, file: Path, opset: int) -> None:
    import onnx

    side = part.network.backbone.smallest_side
    axes = {INPUT: {0: 'batch', 2: 'height', 3: 'width'}}
    for name in part.outputs:
        axes[name] = {0: 'batch'} if part.kind == 'classifier' else {0: 'batch', 2: f'{name}_h', 3: f'{name}_w'}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a trace may keep any of these numbers as a constant, so each is verified
        torch.onnx.export(
            part.model,
            (part.images(2 * side, 3 * side),),
            str(file),
            input_names=[INPUT],
            output_names=list(part.outputs),
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    model = onnx.load(file)
    onnx.helper.set_model_props(model, part.metadata())
    onnx.save(model, file)


def _difference(part: Part, session: InferenceSession, images: Tensor) -> float:
    pairs = zip(run_session(session, images), part.run(images))
    return max(((torch.from_numpy(ours) - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs)
