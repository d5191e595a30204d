"""Measure time and memory, and name the machine."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

SEED = 0  # seed of weights and images
WARM_UP = 2
Net = TypeVar('Net')


@dataclass(frozen=True)
class Timing:
    """Seconds of one network's runs.

    Attributes:
        median: median of all runs.
        low, high: quartiles.
        runs: number of runs.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        low, median, high = statistics.quantiles(seconds, n=4, method='inclusive')
        return cls(median, low, high, len(seconds))

    def to_dict(self) -> dict:
        return asdict(self)

    def cells(self) -> list[str]:
        """Median and quartiles for a table."""
        return [f'{self.median:.3g}', f'{self.low:.3g}-{self.high:.3g}']


def forward_step(model: nn.Module, x: Tensor, amp: bool | torch.dtype = False) -> None:
    """Inference: maps of an image, no gradients."""
    with torch.inference_mode(), precision(x.device, amp):
        model(x)


def training_step(model: nn.Module, x: Tensor, amp: bool | torch.dtype = False) -> None:
    """Forward and backward through all maps, without an optimizer."""
    with precision(x.device, amp):
        loss = sum(feature.square().mean() for feature in model(x))
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def time_alternating(
    models: Mapping[str, Net],
    step: Callable[[Net, Tensor], object],
    x: Tensor,
    repeats: int,
    clock: Callable[[], float] | None = None,
) -> dict[str, Timing]:
    """``time_in_turn`` of one step of each network on the same images.

    Args:
        models: networks by name.
        step: ``forward_step``, ``training_step``, or another function that runs such a network.
        x: ``(B, 3, h, w)``.
        repeats: timed runs of each, at least 2.
        clock: see ``seconds``.

    Raises:
        ValueError: see ``check_repeats``.
    """
    return time_in_turn({name: partial(step, model, x) for name, model in models.items()}, repeats, clock)


def time_in_turn(
    work: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] | None = None
) -> dict[str, Timing]:
    """Time several functions alternately, so that other load on the machine affects all of them equally.

    Args:
        work: functions by name.
        repeats: timed runs of each, at least 2; two runs before them are not timed.
        clock: see ``seconds``; None = ``now``.

    Raises:
        ValueError: see ``check_repeats``.
    """
    check_repeats(repeats)
    taken: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(-WARM_UP, repeats):
        order = list(work.items())
        for name, act in order if round_ % 2 else reversed(order):
            elapsed = seconds(act, clock or now)
            if round_ >= 0:
                taken[name].append(elapsed)
    return {name: Timing.of(values) for name, values in taken.items()}


def now() -> float:
    """Seconds on the clock, after the GPU has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], clock: Callable[[], float] = now) -> float:
    """The time of one run.

    Args:
        work: the function to time.
        clock: the clock; ``time.process_time`` counts processor time.
    """
    start = clock()
    work()
    return clock() - start


def check_repeats(repeats: int) -> None:
    """Refuse a number of timed runs that is too small for a spread.

    Raises:
        ValueError: fewer than 2.
    """
    if repeats < 2:
        raise ValueError(f'repeats = {repeats}: at least 2 are needed for a median with spread.')


def peak_memory(model: nn.Module, step: Callable[[nn.Module, Tensor], None], x: Tensor) -> int:
    """Bytes that one step needs at its peak, in addition to the memory before it.

    On a CPU this is the growth of the process's resident memory. Free memory is given back to the system first, because
    the allocator would use it again; ``in_fresh_process`` leaves least of it.

    Raises:
        OSError: on a CPU without Linux's ``/proc``.
        AttributeError: on a CPU without glibc.
    """
    if x.is_cuda:
        step(model, x)  # cuBLAS and cuDNN allocate their workspaces
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        step(model, x)
        return torch.cuda.max_memory_allocated(x.device) - before
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM, the peak of resident memory
    before = _resident('VmRSS')
    step(model, x)
    return _resident('VmHWM') - before


def in_fresh_process(work: Callable[..., int], *arguments: object) -> int:
    """The result of a module's function in a separate process, with the same number of threads."""
    threads = (torch.get_num_threads(),)
    with multiprocessing.get_context('spawn').Pool(1, initializer=torch.set_num_threads, initargs=threads) as pool:
        return pool.apply(work, arguments)


def process_peak(device: str) -> int:
    """Peak memory of this process in bytes, on its GPU or on the host."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


def _resident(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) * 1024
    raise AssertionError(f'/proc/self/status has no {field}')


def noise(batch: int, size: tuple[int, int], device: str = 'cpu') -> Tensor:
    """Always the same random images ``(batch, 3, h, w)``."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(SEED)).to(device)


def device_name(device: str) -> str:
    """Name of the GPU or CPU of this machine."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def precision(device: torch.device, amp: bool | torch.dtype) -> contextlib.AbstractContextManager:
    """Autocast to a type, or with True to float16 on CUDA and bfloat16 on a CPU; with False nothing."""
    if amp is False:
        return contextlib.nullcontext()
    if amp is True:
        amp = torch.float16 if device.type == 'cuda' else torch.bfloat16
    return torch.autocast(device.type, dtype=amp)
