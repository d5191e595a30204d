"""Variants of one piece of work, timed in turn: a row for each, a note for each that cannot run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from upvit_mm.benchmark.gpu.notebook import Notebook, one_line
from upvit_mm.stopwatch import peak_memory, time_in_turn

AMP = {'bf16': torch.bfloat16, 'fp32': False}  # precision -> autocast of ``upvit_mm.stopwatch``


def time_variants(
    notebook: Notebook, variants: Mapping[str, Callable[[], object]], repeats: int, device: str, **labels: Any
) -> None:
    """Time the variants alternately, and measure the peak memory of each on a GPU.

    Args:
        notebook: gets the rows and the notes.
        variants: by name.
        repeats: timed runs of each.
        device: where they run.
        **labels: ``work``, ``network``, ``batch`` and ``precision`` of the rows.
    """
    able = {name: act for name, act in variants.items() if _runs(notebook, name, act, labels)}
    if not able:
        return
    for name, timing in time_in_turn(able, repeats).items():
        peak = None
        if device == 'cuda':
            peak = peak_memory(able[name], lambda act, _: act(), torch.empty(0, device=device))
        rate = labels['batch'] / timing.median
        seconds = timing.to_dict()
        notebook.add(**labels, variant=name, seconds=seconds, images_per_second=rate, peak_bytes=peak)


def _runs(notebook: Notebook, name: str, act: Callable[[], object], labels: Mapping[str, Any]) -> bool:
    try:
        act()
    except Exception as error:  # too little memory, a compiler that is missing, ...: the others are measured
        where = ', '.join(map(str, labels.values()))
        notebook.note(f'{where}: {name} cannot run ({one_line(error)}).')
        return False
    return True
