"""The report of a comparison of detectors: tables as Markdown and CSV, everything as JSON, and the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from upvit_mm.compare.contestants import SEED
from upvit_mm.compare.curves import plot_runs, range_over, set_percent_axis
from upvit_mm.compare.detector_table import UNCOUNTED, DetectorRow, DetectorTable
from upvit_mm.compare.paired import how_differences
from upvit_mm.files import write_atomically, write_text_atomically

matplotlib.use('Agg')
COST_HEADER = ('backbone', 'MACs', 'all MACs', 'backbone params', 'all params', 'latency ms', 'images/s', 'peak MiB')


def write_detectors(folder: Path, content: dict[str, Any]) -> None:
    """``detectors.json``, ``detectors.csv``, ``detectors.md``, and ``curves.png`` if there was a training."""
    table = DetectorTable.of(content)
    write_text_atomically(folder / 'detectors.json', json.dumps(content, indent=2) + '\n')
    write_text_atomically(folder / 'detectors.csv', table.sheet().csv())
    write_text_atomically(folder / 'detectors.md', as_markdown(table))
    if table.trained:
        figure = draw_curves(table)
        write_atomically(folder / 'curves.png', lambda part: figure.savefig(part, format='png', dpi=110))


def as_markdown(table: DetectorTable) -> str:
    """A table of AP for boxes, one for masks, one of costs; and how they were made."""
    lines = ['# Detectors', '', _how(table), '', what_varies(table), '']
    for kind in table.kinds:
        lines += [*table.ap_table(kind).markdown(), '']
    lines += [*table.cost_table(COST_HEADER).markdown(), '', _costs_how(table), '']
    if table.trained:
        lines += [f'![box AP by epoch{range_over(table.seeds)}](curves.png)', '']
    for row in table.rows:
        lines.append(f'- {row.name}: {row.arch["name"] or "custom arch"}, {_start(row)}')
    lines += ['', f'Config {table.config_sha256[:12]}..., upvit_mm {table.upvit_mm_version}.']
    if table.command is not None:
        lines += ['', '```', table.command, '```']
    return '\n'.join(lines) + '\n'


def draw_curves(table: DetectorTable) -> Figure:
    """Box AP by epoch on the validation data."""
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    for k, row in enumerate(table.rows):
        curves = [[None if ap is None else 100 * ap for ap in run['curve']] for run in row.runs]
        plot_runs(axes, curves, k, row.name)
    axes.set(xlabel='epoch', ylabel='box AP on the validation data, %')
    set_percent_axis(axes)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def what_varies(table: DetectorTable) -> str:
    """A caption that says what the spread over seeds includes and what it does not."""
    if len(table.seeds) < 2:
        return 'One training of each: what another one would change is not known.'
    started = [row for row in table.rows if row.checkpoint]
    own = ', '.join(row.name for row in started if SEED in row.checkpoint)
    same = ', '.join(row.name for row in started if SEED not in row.checkpoint)
    parts = ['Every seed is a training of the detector.']
    if own:
        parts.append(f'{own}: each seed starts from weights of its own.')
    if same:
        parts.append(f'{same}: all seeds start from the same weights, so the spread does not hold how these vary.')
    if started:
        parts.append(
            'Backbones that come from one dense network share it: how results vary with it is not in the spread.'
        )
    return ' '.join(parts)


def _how(table: DetectorTable) -> str:
    differences = f'Differences are to {table.baseline}. {how_differences(len(table.seeds))}'
    if not table.trained:
        return f'{table.how_made()} AP in % (rounded to 0.1 by mmdet). {differences}'
    spread = ', mean ± standard deviation over seeds' if len(table.seeds) > 1 else ''
    return (
        f'{table.how_made()} Processes: {table.processes}; machine: {table.machine}. AP in % (rounded to 0.1 by mmdet) '
        f'of the last weights{spread}. {differences}'
    )


def _costs_how(table: DetectorTable) -> str:
    height, width = table.size
    text = (
        f'MACs of the backbone, and with neck and heads, at {height}x{width} (padding included); parameters of the '
        'backbone and of all.'
    )
    if any(row.detector_macs is None for row in table.rows):
        text += f' {UNCOUNTED}'
    if not table.speed:
        return text + ' Speed was not measured.'
    settings = table.speed['settings']
    return (
        f'{text} Latency (one image, median and quartiles of {settings["repeats"]} runs in turn), images a second '
        f'(batches of {settings["batch"]}) and peak memory (one image) of the whole prediction on '
        f'{settings["device"]}, {settings["threads"]} thread(s), with '
        + ("the first seed's weights." if table.trained else 'these weights.')
    )


def _start(row: DetectorRow) -> str:
    if not row.checkpoint:
        return 'from random weights'
    digest = f' (sha256 {row.sha256[:12]}...)' if row.sha256 else ''
    model = f', model of `{row.config}`' if row.config else ''
    return f'from `{row.checkpoint}`{digest}{model}'
