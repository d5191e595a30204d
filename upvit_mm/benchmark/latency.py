"""Latency and throughput of backbones and detectors, compared with each other and with an earlier run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from upvit_mm.arch import resolve_arch
from upvit_mm.arch.size import Size
from upvit_mm.checkpoints import read_checkpoint
from upvit_mm.cli import check_device
from upvit_mm.models import build_backbone
from upvit_mm.models.trained_detector import load_trained
from upvit_mm.registry import scope_of
from upvit_mm.stopwatch import SEED, Timing, device_name, forward_step, noise, time_alternating
from upvit_mm.workflow.whole_detector import WholeDetector, build_detector

Networks = dict[str, dict[str, nn.Module]]  # by part that runs, then by name


@dataclass(frozen=True)
class LatencySettings:
    """Settings that decide a latency, besides network and machine.

    Attributes:
        sizes: ``(height, width)`` of the images in pixels.
        batches: images per batch.
        device: ``'cpu'`` or ``'cuda'``.
        amp: autocast.
        channels_last: memory format of the images.
        compile: run networks compiled with ``torch.compile``, separately for each size and batch.
        threads: CPU threads of torch.

    Raises:
        ValueError: no such device, or ``compile`` without a working compiler.
    """

    sizes: Sequence[Size]
    batches: Sequence[int] = (1,)
    device: str = 'cpu'
    amp: bool = False
    channels_last: bool = False
    compile: bool = False
    threads: int = 1

    def __post_init__(self):
        if (least := min(*self.batches, self.threads)) < 1:
            raise ValueError(f'batch or threads = {least}: must be at least 1.')
        check_device(self.device)
        if self.compile:
            check_compiler(self.device)


def check_compiler(device: str) -> None:
    """Compile something small.

    Raises:
        ValueError: the compilation fails.
    """
    try:
        torch.compile(nn.functional.gelu)(torch.ones(8, device=device))
    except RuntimeError as error:
        reason = str(error).strip().partition('\n')[0].rstrip('.')
        raise ValueError(
            f'compile: torch.compile does not work here: {reason}. '
            'It needs a C++ compiler (g++) on a CPU and Triton on a GPU; install it, or leave --compile out.'
        ) from error


def backbones(archs: Sequence[str]) -> Networks:
    """Backbones of ours with random weights.

    Args:
        archs: stock names and ``arch.json`` files, also used as names.
    """
    torch.manual_seed(SEED)
    specs = {name: resolve_arch(name) for name in _each_once(archs)}
    return {'backbone': {name: build_backbone(arch).eval() for name, arch in specs.items()}}


def detectors(configs: Sequence[Sequence[str]]) -> Networks:
    """Detectors of mmdet: backbone and neck, and everything from images to detections.

    Args:
        configs: for each its config file and, if it should not have random weights, a checkpoint; both together are its
            name.

    Raises:
        ValueError: the config is not of a detector, or a checkpoint does not fit.
    """
    torch.manual_seed(SEED)
    networks: Networks = {'extract_feat': {}, 'predict': {}}
    for name, (config, *checkpoint) in zip(_each_once([' '.join(words) for words in configs]), configs):
        cfg = Config.fromfile(config)
        if scope_of(cfg) != 'mmdet':
            raise ValueError(
                f'config {config!r}: is not a detector config (default_scope mmdet); for a backbone use --arch.'
            )
        detector = build_detector(cfg)
        if checkpoint:
            load_trained(detector, read_checkpoint(*checkpoint), *checkpoint)
        networks['extract_feat'][name] = Features(detector)
        networks['predict'][name] = WholeDetector(detector)
    return networks


def _each_once(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'{name!r} is given {names.count(name)} times: give every network once.')
    return names


class Features(nn.Module):
    """Backbone and neck of a detector."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.detector.extract_feat(x)


def measure_latency(
    networks: Networks, settings: LatencySettings, repeats: int, against: str | Path | None = None
) -> dict[str, Any]:
    """Time networks alternately on the same random images, for every size and batch.

    Args:
        networks: see ``backbones`` and ``detectors``.
        settings: settings of the measurement.
        repeats: timed runs of each.
        against: file with the record of an earlier run to compare with.

    Returns:
        ``settings``, ``machine`` and ``rows``: for each part, size, batch and network the ``seconds`` (median and
        quartiles), ``images_per_second``, ``ratio`` (seconds divided by those of the first network) and, if ``against``
        has the network, ``ratio_to_earlier``.

    Raises:
        ValueError: whole detectors with ``amp`` on a CPU; see also ``earlier_medians`` and ``time_alternating``.
    """
    if settings.amp and settings.device == 'cpu' and 'predict' in networks:
        raise ValueError(
            'amp: on a CPU non-maximum suppression of mmcv needs float32; measure detectors there without amp, '
            'or their backbones with --arch.'
        )
    torch.set_num_threads(settings.threads)
    machine = {'device': device_name(settings.device), 'cores': os.cpu_count(), 'torch': torch.__version__}
    record: dict[str, Any] = {'settings': json.loads(json.dumps(asdict(settings))), 'machine': machine, 'rows': []}
    earlier = {} if against is None else earlier_medians(against, record, networks)
    for part, size, batch in product(networks, settings.sizes, settings.batches):
        x = noise(batch, size, settings.device)
        if settings.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        models = {name: model.to(settings.device) for name, model in networks[part].items()}
        if settings.compile:
            torch.compiler.reset()  # with many shapes torch would stop compiling
            models = {name: torch.compile(model, dynamic=False) for name, model in models.items()}
        timings = time_alternating(models, partial(forward_step, amp=settings.amp), x, repeats)
        first = next(iter(timings.values())).median
        for name, timing in timings.items():
            row = {'part': part, 'size': list(size), 'batch': batch, 'network': name, 'seconds': timing.to_dict()}
            row |= {'images_per_second': batch / timing.median, 'ratio': timing.median / first}
            if before := earlier.get(_place(row)):
                row['ratio_to_earlier'] = timing.median / before
            record['rows'].append(row)
    return record


def earlier_medians(path: str | Path, record: Mapping[str, Any], networks: Networks) -> dict[tuple, float]:
    """Seconds of an earlier run, by part, size, batch and network.

    Args:
        path: its file.
        record: ``settings`` and ``machine`` of the run to compare with it.
        networks: networks of that run.

    Raises:
        OSError: no such file.
        ValueError: the file is not such a record, was measured with other settings or on another machine, or has none
            of the networks.
    """
    text = Path(path).read_text(encoding='utf-8')
    try:
        earlier = json.loads(text)
        medians = {_place(row): row['seconds']['median'] for row in earlier['rows']}
        theirs = {**earlier['settings'], **earlier['machine']}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'against = {str(path)!r}: is not a record of a latency run.') from error
    ours = {**record['settings'], **record['machine']}
    other = [f'{name} = {theirs.get(name)!r} (now {ours[name]!r})' for name in ours if theirs.get(name) != ours[name]]
    if other:
        raise ValueError(
            f'against = {str(path)!r}: was measured differently: {", ".join(other)}. Times can be compared only on one '
            'machine with the same settings; measure it again.'
        )
    wanted = {(part, name) for part, models in networks.items() for name in models}
    if wanted.isdisjoint((part, name) for part, *_, name in medians):
        names = ', '.join(sorted({place[-1] for place in medians}))
        raise ValueError(f'against = {str(path)!r}: has none of the networks; it has {names}.')
    return medians


def _place(row: Mapping[str, Any]) -> tuple:
    return row['part'], tuple(row['size']), row['batch'], row['network']


def tables_of(record: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table of ``measure_latency``: one for each part, size and batch."""
    header = ['network', 'median s', 'quartiles s', 'images/s', 'over first', 'over earlier']
    if not any('ratio_to_earlier' in row for row in record['rows']):
        header.pop()
    tables: dict[str, list[list[str]]] = {}
    for row in record['rows']:
        height, width = row['size']
        ratios = (f'{row[name]:.2f}' if name in row else '' for name in ('ratio', 'ratio_to_earlier'))
        cells = [row['network'], *Timing(**row['seconds']).cells(), f'{row["images_per_second"]:,.2f}', *ratios]
        tables.setdefault(f'{row["part"]}, {row["batch"]} x {height}x{width}', []).append(cells[: len(header)])
    return [(title, header, rows) for title, rows in tables.items()]
