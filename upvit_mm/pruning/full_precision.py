"""Products in full single precision: TensorFloat-32 of NVIDIA GPUs has only 10 bits after the point.

torch multiplies matrices in full precision unless it is told otherwise, but convolutions in TF32. Scores that are
called exact are differences of nearly equal numbers, and the equations of a repair are sums of squares. So both are
computed without TF32, whatever the user has set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 inside the ``with`` block or the decorated function; the settings are restored after it."""
    known = [setting for setting in SETTINGS if _is_known(*setting[:2])]
    before = [getattr(owner, name) for owner, name, _ in known]
    for owner, name, full in known:
        setattr(owner, name, full)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(known, before):
            setattr(owner, name, value)


def _is_known(owner: object, name: str) -> bool:
    try:
        getattr(owner, name)
    except (AttributeError, RuntimeError):  # torch does not have it, or reads no older name after newer ones were set
        return False
    return True


class _Products:
    """The setting of all matrix products as an attribute."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


_CONVOLUTIONS = torch.backends.cudnn
SETTINGS = (  # owner, name, value; names since torch 2.9 come last, because the older ones change them too
    (_Products(), 'precision', 'highest'),
    (_CONVOLUTIONS, 'allow_tf32', False),
    (torch.backends.cuda.matmul, 'fp32_precision', 'ieee'),
    (getattr(_CONVOLUTIONS, 'conv', None), 'fp32_precision', 'ieee'),
    (getattr(_CONVOLUTIONS, 'rnn', None), 'fp32_precision', 'ieee'),
)
