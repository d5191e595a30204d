"""How long a network and its parts take on a device: measured once and kept, for budgets in time.

``pruning/latency_table.py`` says which parts at which widths, and makes costs of their times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import GLOBAL, Size, Windows
from upvit_mm.files import cache_folder, sealed, unsealed, write_text_atomically
from upvit_mm.models import build_backbone
from upvit_mm.models.layers.grid import outgoing, units
from upvit_mm.pruning.latency_table import ATTN, ENDS, LatencyTable, Part, Point, parts_of
from upvit_mm.stopwatch import SEED, Timing, device_name, forward_step, now, seconds, time_alternating
from upvit_mm.version import __version__

logger = logging.getLogger('upvit_mm')
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
ROUNDS = 7  # times of each part; the median counts
LEAST = 5e-3  # seconds of one measurement; a shorter part runs several times in it
FEWEST, MOST, SIDE_BY_SIDE = 5, 50, 20.0  # runs of whole networks, and about how many seconds they may take
Timed = tuple[Part, Point]


@dataclass(frozen=True)
class Bench:
    """On what, and how, a latency is measured: forward passes of a backbone, without compilation.

    Attributes:
        size: ``(height, width)`` of the images in pixels.
        device: ``'cpu'`` or ``'cuda'`` (``'cuda:3'``).
        precision: of weights and images, one of ``DTYPES``.
        batch: images per batch.
        windows: windows of attention.

    Raises:
        ValueError: no such device, or a precision that it does not support.
    """

    size: Size
    device: str = 'cpu'
    precision: str = 'fp32'
    batch: int = 1
    windows: Windows = GLOBAL

    def __post_init__(self):
        on_gpu = self.device.startswith('cuda')
        if on_gpu and not torch.cuda.is_available():
            raise ValueError(
                f'latency_device = {self.device!r}: torch {torch.__version__} sees no GPU on this machine; use cpu.'
            )
        known = ['fp32', *['fp16'] * on_gpu, *['bf16'] * (not on_gpu or torch.cuda.is_bf16_supported())]
        if self.precision not in known:
            raise ValueError(
                f'latency_precision = {self.precision!r}: {device_name(self.device)} ({self.device}) takes '
                f'{" or ".join(known)}.'
            )

    @property
    def origin(self) -> dict[str, Any]:
        """Machine and settings, plain data."""
        threads = None if self.device.startswith('cuda') else torch.get_num_threads()
        machine = {'device': device_name(self.device), 'threads': threads, 'torch': torch.__version__}
        windows = [self.windows.size, self.windows.global_blocks and list(self.windows.global_blocks)]
        return {
            **machine,
            'upvit_mm': __version__,
            'precision': self.precision,
            'batch': self.batch,
            'size': list(self.size),
            'windows': windows,
            'clock': 'wall' if self.clock is now else 'processor',
        }

    def noise(self, *shape: int) -> Tensor:
        """Always the same random numbers."""
        generator = torch.Generator(self.device).manual_seed(SEED)
        return torch.randn(*shape, generator=generator, device=self.device).to(DTYPES[self.precision])

    def place(self, module: nn.Module) -> nn.Module:
        """A module without memory (``meta``) with random weights on the device."""
        module = module.to(DTYPES[self.precision]).to_empty(device=self.device).requires_grad_(False)
        generator = torch.Generator(self.device).manual_seed(SEED)
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.normal_(std=0.02, generator=generator)
        return module

    def build(self, arch: ArchSpec, **settings) -> nn.Module:
        """A backbone without memory."""
        with torch.random.fork_rng(devices=[]), torch.device('meta'):
            return build_backbone(arch, **settings).eval()

    @property
    def clock(self) -> Callable[[], float]:
        """One thread on a CPU: processor time, which leaves out the turns of other programs. Else the wall's time."""
        alone = not self.device.startswith('cuda') and torch.get_num_threads() == 1
        return time.process_time if alone else now

    def on_device(self) -> contextlib.AbstractContextManager:
        """Inside it the stopwatch waits for this GPU."""
        return torch.cuda.device(self.device) if self.device.startswith('cuda') else contextlib.nullcontext()


def side_by_side(archs: Mapping[str, ArchSpec], bench: Bench) -> dict[str, Timing]:
    """Times of whole backbones with random weights, run alternately."""
    nets = {name: bench.place(bench.build(arch, **bench.windows.settings)) for name, arch in archs.items()}
    x = bench.noise(bench.batch, next(iter(archs.values())).in_channels, *bench.size)
    with bench.on_device():
        for net in nets.values():
            forward_step(net, x)
        once = sum(seconds(partial(forward_step, net, x), bench.clock) for net in nets.values())
        repeats = min(max(int(SIDE_BY_SIDE / once), FEWEST), MOST)
        return time_alternating(nets, forward_step, x, repeats, bench.clock)


def time_parts(arch: ArchSpec, bench: Bench, by_heads: bool = False) -> LatencyTable:
    """The times of a network's parts, from the cache or measured now.

    All parts and widths are timed in turn, several times, so that other load on the machine affects all of them alike.
    Every round is kept, so a run that was stopped goes on. The cache is the folder ``latency`` of ``cache_folder``; a
    file that cannot be read is replaced with a warning.

    Args:
        arch: the dense network.
        bench: device and settings.
        by_heads: whether whole heads are removed.
    """
    parts = parts_of(arch, bench.windows, by_heads)
    todo = [(part, point) for part in parts for point in part.points]
    layout = [[part.name, *point] for part, point in todo]
    key = {**bench.origin, 'arch': arch.to_dict() | {'name': ''}, 'by_heads': by_heads, 'points': layout}
    file = cache_folder('latency') / f'{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}.json'
    rounds = _rounds_in(file, key)
    if left := range(len(rounds), ROUNDS):
        logger.info('latency: %d parts and widths are timed %d times, kept in %s', len(todo), len(left), file)
        timer = PartTimer(arch, bench)
        console = Console(stderr=True)
        for number in track(left, 'timing parts', console=console, disable=not console.is_terminal):
            rounds.append(timer.round(todo, number))
            write_text_atomically(file, json.dumps(sealed({'key': key, 'rounds': rounds})) + '\n')
    medians = iter([statistics.median(times) for times in zip(*rounds)])
    return LatencyTable(
        parts,
        tuple(tuple(next(medians) for _ in part.points) for part in parts),
        bench.windows,
        by_heads,
        bench.origin,
        str(file),
    )


def _rounds_in(file: Path, key: Mapping[str, Any]) -> list[list[float]]:
    """The rounds that an earlier run has kept."""
    if not file.is_file():
        return []
    try:
        content = unsealed(json.loads(file.read_text(encoding='utf-8')), 'content')
        rounds = content['rounds']
        if content['key'] != key or any(len(times) != len(key['points']) for times in rounds):
            raise ValueError('it has other parts')
    except (ValueError, KeyError, TypeError) as error:
        logger.warning('latency: %s cannot be used (%s); parts are timed again', file, error)
        return []
    return rounds[:ROUNDS]


class PartTimer:
    """Times parts of a network at given widths; modules and inputs are made once.

    Args:
        arch: the dense network.
        bench: device and settings.
    """

    def __init__(self, arch: ArchSpec, bench: Bench):
        self.arch, self.bench = arch, bench
        self._runs: dict[tuple[str, Point], tuple[Callable[[], object], int]] = {}  # and how often in a measurement
        self._inputs: dict[tuple[int, ...], Tensor] = {}

    def round(self, todo: Sequence[Timed], number: int) -> list[float]:
        """Seconds of each, measured in an order of the round's own."""
        order = random.Random(number).sample(range(len(todo)), len(todo))
        with torch.inference_mode(), self.bench.on_device():
            taken = {k: self.time(*todo[k]) for k in order}
        return [taken[k] for k in range(len(todo))]

    def time(self, part: Part, point: Point) -> float:
        """Seconds of one run."""
        place = part.name, point
        if place not in self._runs:
            run = self._prepare(part, point)
            run()
            self._runs[place] = run, max(math.ceil(LEAST / max(seconds(run, self.bench.clock), 1e-9)), 1)
        run, count = self._runs[place]

        def repeat() -> None:
            for _ in range(count):
                run()

        return seconds(repeat, self.bench.clock) / count

    def _prepare(self, part: Part, point: Point) -> Callable[[], object]:
        """A function that runs a part at some widths."""
        i, bench, arch = part.stage, self.bench, self.arch
        settings = {'window_size': part.window, 'global_blocks': ()} if part.window else {}
        net = bench.build(_one_block(arch, part, point), **settings)
        grids = self._grids()
        tokens = arch.num_prefix_tokens + grids[i + 1][0] * grids[i + 1][1]
        if part.kind == ENDS:
            image = self._input(grids[i][0] * grids[i][1], point[0]).unflatten(1, grids[i]).permute(0, 3, 1, 2)
            for k, stage in enumerate(net.stages):
                stage.blocks = nn.ModuleList()
                if k != i:
                    net.stages[k] = nn.Identity()
            bench.place(net)
            return partial(_ends, net, i, image if i else image.contiguous())
        block = net.stages[i].blocks[0]
        if part.kind == ATTN:
            block.norm2 = block.mlp = None
        else:
            block.norm1 = block.attn = None
        bench.place(block)
        half = block.add_attn if part.kind == ATTN else block.add_mlp
        return partial(half, self._input(tokens, point[0]), grids[i + 1])

    def _grids(self) -> list[Size]:
        """The image, and the grid of each stage."""
        grids = [self.bench.size]
        for stride in self.arch.patch_strides:
            grids.append((units(grids[-1][0], stride), units(grids[-1][1], stride)))
        return grids

    def _input(self, tokens: int, channels: int) -> Tensor:
        shape = (self.bench.batch, tokens, channels)
        if shape not in self._inputs:
            self._inputs[shape] = self.bench.noise(*shape)
        return self._inputs[shape]


def _ends(net: nn.Module, i: int, x: Tensor) -> Tensor:
    """What a stage does before and after its blocks."""
    tokens, grid = net.enter_stage(i, x)
    return outgoing(net.to_map(net.leave_stage(i, tokens), grid))


def _one_block(arch: ArchSpec, part: Part, point: Point) -> ArchSpec:
    """A network with one block in each stage, and in the part's stage with the widths of a point."""
    fields = {name: [[stage[0]] for stage in getattr(arch, name)] for name in ('num_heads', 'qk_dims', 'v_dims')}
    fields |= {name: [[stage[0]] for stage in getattr(arch, name)] for name in ('mlp_hidden_dims', 'qk_scales')}
    embed, i = list(arch.embed_dims), part.stage
    if part.kind == ATTN:
        embed[i], *widths = point
        for name, width in zip(('qk_dims', 'v_dims', 'num_heads'), widths):
            fields[name][i] = [width]
    elif part.kind == ENDS:
        embed[max(i - 1, 0)], embed[i] = point
    else:
        embed[i], hidden = point
        fields['mlp_hidden_dims'][i] = [hidden]
    return arch.with_widths({'depths': [1] * arch.num_stages, 'embed_dims': embed, **fields})
