"""The report of a comparison of classifiers: a table as Markdown and CSV, everything as JSON, and the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from upvit_mm.compare.classifier_table import REFERENCE, ClassifierTable
from upvit_mm.compare.curves import plot_runs, range_over, set_percent_axis, style_of
from upvit_mm.compare.paired import how_differences
from upvit_mm.files import write_atomically, write_text_atomically

matplotlib.use('Agg')
ONE_DENSE = (
    'All seeds share one dense network and one pruning of it: how results vary with the dense network is not in the '
    'spread.'
)


def write_classifiers(folder: Path, content: dict[str, Any]) -> None:
    """``compare.json``, ``compare.csv``, ``compare.md`` and ``curves.png``."""
    table = ClassifierTable.of(content)
    write_text_atomically(folder / 'compare.json', json.dumps(content, indent=2) + '\n')
    write_text_atomically(folder / 'compare.csv', table.sheet().csv())
    write_text_atomically(folder / 'compare.md', as_markdown(table))
    figure = draw_curves(table)
    write_atomically(folder / 'curves.png', lambda part: figure.savefig(part, format='png', dpi=110))


def as_markdown(table: ClassifierTable) -> str:
    """The table, and how it was made."""
    options, times = table.options, table.step_times
    images = options['train_images'] or 'all'
    lesson = ', '.join(f'{name} {value:g}' for name, value in options['lesson'].items() if value)
    lines = [
        f'# {table.goal}: vanilla and UP',
        '',
        f'Trained on {images} images; seeds {", ".join(map(str, options["seeds"]))}. Distillation: {lesson}.',
        '',
        f'{how_differences(len(options["seeds"]))} {ONE_DENSE}',
        '',
        *table.table().markdown(),
        '',
        f'MACs{table.where()} and parameters include the head.',
        '',
        f'A step with the teacher takes {times["ratio"]:.2f} times a plain one, timed in turn on one batch '
        f'({1000 * times["distilled"]:.0f} ms and {1000 * times["plain"]:.0f} ms; the teacher alone '
        f'{1000 * times["teacher"]:.0f} ms, which makes {times["ratio_bound"]:.2f} at best).',
        '',
        f'![top-1 after each epoch{range_over(options["seeds"])}](curves.png)',
        '',
        f'Dense checkpoint `{table.checkpoint}` (sha256 {table.sha256[:12]}...).',
    ]
    if table.command is not None:
        lines += ['', '```', table.command, '```']
    return '\n'.join(lines) + '\n'


def draw_curves(table: ClassifierTable) -> Figure:
    """Top-1 by epoch: mean over seeds, and the range between the best and the worst."""
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    axes.axhline(table.dense['top1'], color='black', linestyle=':', label='dense')
    for k, row in enumerate(table.rows):
        plot_runs(axes, row.curves, k, f'{row.title}: {row.mean:.2f}')
        if row.key == REFERENCE:
            axes.axhline(row.mean, color=style_of(k)['color'], linestyle=':', linewidth=1)
    axes.set(xlabel='epoch', ylabel='top-1 %')
    set_percent_axis(axes)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
