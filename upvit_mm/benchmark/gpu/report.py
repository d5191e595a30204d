"""The whole report: machine, parts one after another, goals; as JSON and as Markdown."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from upvit_mm.benchmark.gpu.goals import judged
from upvit_mm.benchmark.gpu.page import page_of
from upvit_mm.benchmark.gpu.parts import PARTS, TIME_LIMIT, Part, run_part
from upvit_mm.files import write_text_atomically
from upvit_mm.stopwatch import device_name
from upvit_mm.version import __version__

PACKAGES = ('timm', 'triton', 'torchvision', 'numpy', 'opencv-python', 'opencv-python-headless')
PACKAGES += ('onedl-mmcv', 'mmcv', 'onedl-mmdetection', 'mmdet')


def make_report(
    folder: Path,
    setting: str = 'full',
    device: str = 'cuda',
    time_limit: float = TIME_LIMIT,
    parts: Sequence[Part] = PARTS,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Run the parts, and write ``report.json`` and ``report.md`` after each of them.

    Args:
        folder: for the two files and those of the parts.
        setting: ``'full'`` or ``'small'``.
        device: ``'cpu'`` or ``'cuda'``.
        time_limit: seconds for all parts of ``PARTS``; each may take its share.
        parts: those that run.
        say: told before and after each part.

    Returns:
        The content of ``report.json``: ``machine``, ``setting``, ``device``, ``date``, ``parts`` and ``goals``.

    Raises:
        ValueError: a limit that is not above 0.
    """
    if time_limit <= 0:
        raise ValueError(f'time_limit = {time_limit:g}: must be above 0, in seconds.')
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        'machine': describe_machine(device),
        'setting': setting,
        'device': device,
        'date': time.strftime('%Y-%m-%d'),
        'parts': [],
    }
    for part in parts:
        limit = part.seconds * time_limit / TIME_LIMIT
        say(f'{part.name}: at most {limit:.0f} s')
        found = run_part(part, setting, device, folder, limit)
        say(f'{part.name}: {found["status"]} after {found["seconds"]:.0f} s {found["error"] or ""}'.rstrip())
        record['parts'].append(found)
        record['goals'] = judged(row for done in record['parts'] for row in done['rows'])
        write_text_atomically(folder / 'report.json', json.dumps(record, indent=2) + '\n')
        write_text_atomically(folder / 'report.md', page_of(record))
    return record


def describe_machine(device: str) -> dict[str, Any]:
    """Name of the device, its number of CPU cores, and the versions of what is installed."""
    versions = {'upvit_mm': __version__, 'python': platform.python_version(), 'torch': torch.__version__}
    versions['cuda'] = torch.version.cuda
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {'device': device_name(device), 'cores': os.cpu_count(), 'versions': versions}
