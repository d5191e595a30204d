"""The backbone benchmark: ours against the same network of timm and mmdet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from upvit_mm.arch import ArchSpec
from upvit_mm.benchmark.rivals import build_backbones
from upvit_mm.cli import check_device
from upvit_mm.stopwatch import (
    SEED,
    Timing,
    device_name,
    forward_step,
    in_fresh_process,
    noise,
    peak_memory,
    time_alternating,
    training_step,
)

TOLERANCE = 5e-2  # relative to a map's largest value; mmdet's LayerNorm eps differs, and weights are random
STEPS: dict[str, Callable] = {'forward': forward_step, 'training': training_step}


def compare_backbones(
    arch: ArchSpec,
    rivals: Sequence[str],
    sizes: dict[str, tuple[int, int]],
    batch: int = 1,
    repeats: int = 7,
    device: str = 'cpu',
    amp: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Time and peak memory of our backbone and its rivals, with the same weights, alternately in one process.

    Args:
        arch: a stock architecture.
        rivals: of ``'timm'`` and ``'mmdet'``.
        sizes: ``(h, w)`` in pixels for each of ``'forward'`` and ``'training'`` to measure.
        batch: images per step.
        repeats: timed runs of each network.
        device: ``'cpu'`` or ``'cuda'``.
        amp: autocast.
        threads: CPU threads of torch; None keeps torch's setting.

    Returns:
        ``{'settings': ..., 'forward': {name: {'seconds': ..., 'ratio': ours / name, 'peak_bytes': ...}}, ...}``.

    Raises:
        ValueError: see ``check_device``, ``build_backbones`` and ``time_alternating``.
    """
    check_device(device)
    if threads:
        torch.set_num_threads(threads)
    models = _build(arch, rivals, device)
    results: dict[str, Any] = {
        'settings': {
            'arch': arch.name,
            'batch': batch,
            'device': device_name(device),
            'amp': amp,
            'threads': torch.get_num_threads(),
            'torch': torch.__version__,
            'seed': SEED,
        }
    }
    for kind, size in sizes.items():
        x = noise(batch, size, device)
        _check_agreement(models, x)
        timings = time_alternating(models, partial(STEPS[kind], amp=amp), x, repeats)
        ours = timings['ours'].median
        results[kind] = {'size': list(size)}
        for name, timing in timings.items():
            peak = in_fresh_process(_peak, arch, name, kind, size, batch, device, amp)
            results[kind][name] = {
                'seconds': timing.to_dict(),
                'ratio': ours / timing.median,
                'peak_bytes': peak,
            }
    return results


def tables_of(results: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table of ``compare_backbones``."""
    tables = []
    for kind in (kind for kind in STEPS if kind in results):
        figures = dict(results[kind])
        height, width = figures.pop('size')
        rows = [
            [name, *Timing(**row['seconds']).cells(), f'{row["ratio"]:.2f}', f'{row["peak_bytes"] / 2**20:.0f}']
            for name, row in figures.items()
        ]
        title = f'{kind}, {results["settings"]["batch"]} x {height}x{width}'
        tables.append((title, ['network', 'median s', 'quartiles s', 'ours / it', 'peak MiB'], rows))
    return tables


def _build(arch: ArchSpec, rivals: Sequence[str], device: str) -> dict[str, nn.Module]:
    torch.manual_seed(SEED)
    return {name: model.to(device) for name, model in build_backbones(arch, rivals).items()}


@torch.inference_mode()
def _check_agreement(models: dict[str, nn.Module], x: torch.Tensor) -> None:
    """Check that the networks compute the same; otherwise the comparison would mean nothing."""
    expected = models['ours'](x)
    for name, model in models.items():
        for ours, theirs in zip(expected, model(x)):
            difference = ((ours - theirs).abs().max() / ours.abs().max()).item()
            assert difference < TOLERANCE, f'{name} computes other maps than ours: {difference:.1e}'


def _peak(arch: ArchSpec, name: str, kind: str, size: tuple[int, int], batch: int, device: str, amp: bool) -> int:
    model = _build(arch, [] if name == 'ours' else [name], device)[name]
    step = partial(STEPS[kind], amp=amp)
    step(model, noise(batch, (64, 64), device))  # libraries load and allocate memory on first use
    return peak_memory(model, step, noise(batch, size, device))
