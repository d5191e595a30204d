"""The report of a comparison of detectors: tables as Markdown and CSV, everything as JSON, and the curves."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from upvit_mm.compare.contestants import SEED
from upvit_mm.compare.curves import plot_runs
from upvit_mm.compare.paired import difference_text, how_differences
from upvit_mm.files import write_atomically, write_text_atomically

matplotlib.use('Agg')
KINDS = {'bbox': 'box', 'segm': 'mask'}
AREAS = {'mAP_50': '50', 'mAP_75': '75', 'mAP_s': 's', 'mAP_m': 'm', 'mAP_l': 'l'}
COSTS = ('macs', 'backbone_params', 'params')


def write_detectors(folder: Path, content: dict[str, Any]) -> None:
    """``detectors.json``, ``detectors.csv``, ``detectors.md``, and ``curves.png`` where there was a training."""
    write_text_atomically(folder / 'detectors.json', json.dumps(content, indent=2) + '\n')
    write_text_atomically(folder / 'detectors.csv', as_csv(content))
    write_text_atomically(folder / 'detectors.md', as_markdown(content))
    if content['trained']:
        figure = draw_curves(content)
        write_atomically(folder / 'curves.png', lambda part: figure.savefig(part, format='png', dpi=110))


def as_csv(content: dict[str, Any]) -> str:
    """One line for each backbone; AP in 0 to 1."""
    metrics = list(content['rows'][0]['mean'])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    over_ends = ('', '_std', '_low', '_high', '_established')
    ends = ('', '_std', *(f'_over_baseline{end}' for end in over_ends))
    figures = [f'{name}{end}' for name in metrics for end in ends]
    speeds = ['latency_seconds', 'images_per_second', 'peak_bytes'] if content['speed'] else []
    writer.writerow(['name', 'arch', *figures, *COSTS, *speeds, 'checkpoint', 'sha256'])
    for row in content['rows']:
        cells = [row['name'], row['arch']['name']]
        for name in metrics:
            over = row['over_baseline'][name]
            interval = over['interval'] or (None, None)
            cells += [row['mean'][name], row['std'][name], over['mean'], over['std'], *interval, over['established']]
        cells += [row[name] for name in COSTS]
        if content['speed']:
            speed = content['speed']['detectors'][row['name']]
            cells += [speed['latency']['median'], speed['throughput'], speed['peak_bytes']]
        writer.writerow([*cells, row['checkpoint'], row['sha256']])
    return text.getvalue()


def as_markdown(content: dict[str, Any]) -> str:
    """A table of AP for boxes, one for masks, one of costs; and how they came about."""
    lines = ['# Detectors', '', _how(content), '', what_varies(content), '']
    for kind in content['kinds']:
        lines += [*_table(*_ap_rows(kind, content)), '']
    lines += [*_table(*_cost_rows(content)), '', _costs_how(content), '']
    if content['trained']:
        lines += ['![box AP by epoch, mean and range over seeds](curves.png)', '']
    for row in content['rows']:
        lines.append(f'- {row["name"]}: {row["arch"]["name"] or "custom arch"}, {_start(row)}')
    lines += ['', f'Config {content["config_sha256"][:12]}..., upvit_mm {content["upvit_mm_version"]}.']
    if 'command' in content:
        lines += ['', '```', content['command'], '```']
    return '\n'.join(lines) + '\n'


def draw_curves(content: dict[str, Any]) -> Figure:
    """Box AP by epoch on the validation data."""
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    for k, row in enumerate(content['rows']):
        curves = [[None if ap is None else 100 * ap for ap in run['curve']] for run in row['runs']]
        plot_runs(axes, curves, k, row['name'])
    axes.set(xlabel='epoch', ylabel='box AP on the validation data, %')
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def what_varies(content: dict[str, Any]) -> str:
    """What the spread over seeds holds, and what it does not, for a caption."""
    if len(content['seeds']) < 2:
        return 'One training of each: what another one would change is not known.'
    started = [row for row in content['rows'] if row['checkpoint']]
    own = ', '.join(row['name'] for row in started if SEED in row['checkpoint'])
    same = ', '.join(row['name'] for row in started if SEED not in row['checkpoint'])
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


def _how(content: dict[str, Any]) -> str:
    if not content['trained']:
        how = f'Given checkpoints, evaluated only, in %. Differences are to {content["baseline"]}.'
        return f'{how} {how_differences(1)}'
    seeds = ', '.join(map(str, content['seeds']))
    return (
        f'Epochs: {content["epochs"]}; seeds: {seeds}; processes: {content["processes"]}; machine: '
        f'{content["machine"]}. AP in % (rounded to 0.1 by mmdet) of the last weights on the test data, mean ± '
        f'standard deviation over seeds; differences are to {content["baseline"]}. '
        f'{how_differences(len(content["seeds"]))}'
    )


def _costs_how(content: dict[str, Any]) -> str:
    height, width = content['size']
    text = f'MACs of the backbone at {height}x{width} (padding included), parameters of the backbone and of all.'
    if not content['speed']:
        return text + ' Speed was not measured.'
    settings = content['speed']['settings']
    return (
        f'{text} Latency (one image, median and quartiles of {settings["repeats"]} runs in turn), images a second '
        f'(batches of {settings["batch"]}) and peak memory (one image) of the whole prediction on '
        f'{settings["device"]}, {settings["threads"]} thread(s), with '
        + ("the first seed's weights." if content['trained'] else 'these weights.')
    )


def _ap_rows(kind: str, content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    first = f'{kind}_mAP'
    header = [
        'backbone',
        f'{KINDS[kind]} AP',
        f'over {content["baseline"]}',
        *(f'AP {area}' for area in AREAS.values()),
    ]
    rows = []
    for row in content['rows']:
        over = row['over_baseline'][first]
        difference = '' if row['name'] == content['baseline'] else difference_text(over, 1, 100)
        names = [first, *(f'{kind}_{area}' for area in AREAS)]
        ap, *others = (_spread(row['mean'][name], row['std'][name]) for name in names)
        rows.append([row['name'], ap, difference, *others])
    return header, rows


def _cost_rows(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ['backbone', 'MACs', 'backbone params', 'all params']
    header += ['latency ms', 'images/s', 'peak MiB'] if content['speed'] else []
    rows = []
    for row in content['rows']:
        cells = [f'{row["macs"] / 1e9:.3f} G', *(f'{row[name] / 1e6:.3f} M' for name in COSTS[1:])]
        if content['speed']:
            speed = content['speed']['detectors'][row['name']]
            low, median, high = (1000 * speed['latency'][name] for name in ('low', 'median', 'high'))
            cells += [f'{median:.1f} ({low:.1f}-{high:.1f})', f'{speed["throughput"]:.1f}']
            cells.append(f'{speed["peak_bytes"] / 2**20:.0f}')
        rows.append([row['name'], *cells])
    return header, rows


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [f'| {" | ".join(row)} |' for row in [header, *rows]]
    return [cells[0], f'|---|{"---:|" * (len(header) - 1)}', *cells[1:]]


def _spread(mean: float | None, std: float | None) -> str:
    """AP in %."""
    if mean is None:
        return '-'
    return f'{100 * mean:.1f}' + ('' if std is None else f' ± {100 * std:.1f}')


def _start(row: dict[str, Any]) -> str:
    if not row['checkpoint']:
        return 'from random weights'
    digest = f' (sha256 {row["sha256"][:12]}...)' if row['sha256'] else ''
    return f'from `{row["checkpoint"]}`{digest}'
