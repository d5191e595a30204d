"""Pruning, in pure torch: which widths there are, how important each channel is, and how to slice.

A name is imported when it is used. So the command line reads ``methods.py`` without torch, and answers a typo at once.
"""

from importlib import import_module
from typing import Any

HOMES = {
    'KINDS': 'dims',
    'PrunableDim': 'dims',
    'fixed_axes': 'dims',
    'prunable_dims': 'dims',
    'PrunePlan': 'plan',
    'make_plan': 'plan',
    'plan_for_target': 'planner',
    'slice_state': 'slicer',
}
__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{HOMES[name]}'), name)
