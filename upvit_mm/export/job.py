"""The export job: write the files, compare them with torch, and time them in onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upvit_mm.arch.size import Size
from upvit_mm.export.onnx_file import open_session, run_session, write_onnx
from upvit_mm.export.parts import Part
from upvit_mm.stopwatch import Timing, check_repeats, time_alternating


@dataclass(frozen=True)
class Exported:
    """A file and its measurements.

    Attributes:
        differences: differences from torch, by size; see ``write_onnx``.
        timings: times of onnxruntime on a CPU with one image, by size.
        num_bytes: size of the file.
    """

    differences: dict[Size, float]
    timings: dict[Size, Timing]
    num_bytes: int


def export(
    part: Part, path: str | Path, sizes: Sequence[Size], opset: int = 17, repeats: int = 7, dense: Part | None = None
) -> dict[str, Exported]:
    """Write a part, verify and time it. If ``dense`` is given, both are timed in alternating runs.

    Args:
        part: the network.
        path: its file.
        sizes: ``(height, width)`` in pixels to verify and time at.
        opset: opset of ONNX.
        repeats: timed runs at each size, at least 2.
        dense: the same part of the dense network; its file is not kept.

    Returns:
        The measurements by name, ``'exported'`` and ``'dense'``.

    Raises:
        ImportError, OSError, ValueError: see ``write_onnx`` and ``time_alternating``.
    """
    check_repeats(repeats)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = {'exported': (part, Path(path))}
        if dense is not None:
            jobs['dense'] = (dense, Path(scratch, 'dense.onnx'))
        differences = {name: write_onnx(*job, sizes, opset) for name, job in jobs.items()}
        sessions = {name: open_session(file) for name, (_, file) in jobs.items()}
        timings = {size: time_alternating(sessions, run_session, part.images(*size), repeats) for size in sizes}
        return {
            name: Exported(differences[name], {size: timings[size][name] for size in sizes}, file.stat().st_size)
            for name, (_, file) in jobs.items()
        }


def result_rows(results: Mapping[str, Exported]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a table: a row for each size of each file."""
    rows = []
    for name, result in results.items():
        for size, timing in result.timings.items():
            cells = [f'{size[0]}x{size[1]}', f'{result.num_bytes / 2**20:.2f}', f'{result.differences[size]:.1e}']
            cells += [f'{1e3 * timing.median:.1f}', f'{1e3 * timing.low:.1f}-{1e3 * timing.high:.1f}']
            if 'dense' in results:
                cells.append(f'{results["dense"].timings[size].median / timing.median:.2f}')
            rows.append([name, *cells])
    header = ['network', 'size', 'MiB', 'difference', 'ms', 'quartiles']
    return header + ['dense / it'] * ('dense' in results), rows
