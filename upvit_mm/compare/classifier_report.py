"""The report of a comparison: a table as Markdown and CSV, everything as JSON, and the curves."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from upvit_mm.compare.curves import plot_runs, style_of
from upvit_mm.compare.paired import difference_text, how_differences
from upvit_mm.files import write_atomically, write_text_atomically

matplotlib.use('Agg')
HEADER = (
    'network',
    'epochs',
    'lr',
    'top-1 % (mean ± std)',
    'over vanilla',
    "epochs to vanilla's final",
    'one-shot top-1 %',
    'ms/step',
    'MACs',
    'params',
)
REFERENCE = 'vanilla'  # key of the row that differences are to
ONE_DENSE = (
    'All seeds share one dense network and one pruning of it: how results vary with the dense network is not in the '
    'spread.'
)
ONE_SHOT = {'plain.pth': 'sliced', 'sliced.pth': 'compensated'}  # file of the pruning job -> name of its judgement


def write_comparison(folder: Path, content: dict[str, Any]) -> None:
    """``compare.json``, ``compare.csv``, ``compare.md`` and ``curves.png``."""
    write_text_atomically(folder / 'compare.json', json.dumps(content, indent=2) + '\n')
    write_text_atomically(folder / 'compare.csv', as_csv(content))
    write_text_atomically(folder / 'compare.md', as_markdown(content))
    figure = draw_curves(content)
    write_atomically(folder / 'curves.png', lambda part: figure.savefig(part, format='png', dpi=110))


def as_csv(content: dict[str, Any]) -> str:
    """One line for each row, with the accuracy of every seed."""
    tops = {seed: f'top1_seed{seed}' for seed in map(str, content['options']['seeds'])}
    over = ('over_vanilla', 'over_vanilla_low', 'over_vanilla_high', 'established')
    figures = ('mean', 'std', *over, 'epochs_to_vanilla', 'seconds_per_step')
    columns = ('key', 'title', 'epochs', 'lr', *tops.values(), *figures, 'macs', 'params')
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    dense = content['dense']
    epochs = content['options']['dense_epochs']
    writer.writerow({**dense, 'key': 'dense', 'title': 'dense', 'epochs': epochs, 'mean': dense['top1']})
    for row in content['rows']:
        each = {column: row['top1'][seed] for seed, column in tops.items()}
        ends = dict(zip(over[1:3], row['interval'] or ()))
        writer.writerow({**row, **each, **ends, **content['target'], 'lr': _lr(row, content)})
    return text.getvalue()


def as_markdown(content: dict[str, Any]) -> str:
    """The table, and how it came about."""
    options, times = content['options'], content['step_times']
    images = options['train_images'] or 'all'
    lesson = ', '.join(f'{name} {value:g}' for name, value in options['lesson'].items() if value)
    epochs = str(options['dense_epochs'] or '')
    lines = [
        f'# {content["goal"]}: vanilla and UP',
        '',
        f'Trained on {images} images; seeds {", ".join(map(str, options["seeds"]))}. Distillation: {lesson}.',
        '',
        f'{how_differences(len(options["seeds"]))} {ONE_DENSE}',
        '',
        f'| {" | ".join(HEADER)} |',
        f'|---|{"---:|" * (len(HEADER) - 1)}',
        _line('dense', epochs, '', f'{content["dense"]["top1"]:.2f}', *[''] * 4, *_costs(content['dense'])),
    ]
    for row in content['rows']:
        spread = '' if row['std'] is None else f' ± {row["std"]:.2f}'
        shot = content['one_shot'].get(ONE_SHOT.get(row['start']), {}).get('top1')
        lines.append(
            _line(
                row['title'],
                str(row['epochs']),
                f'{_lr(row, content):g}',
                f'{row["mean"]:.2f}{spread}',
                _over_vanilla(row),
                'not reached' if row['epochs_to_vanilla'] is None else str(row['epochs_to_vanilla']),
                '' if shot is None else f'{shot:.2f}',
                '' if row['seconds_per_step'] is None else f'{1000 * row["seconds_per_step"]:.0f}',
                *_costs(content['target']),
            )
        )
    lines += [
        '',
        f'A step with the teacher takes {times["ratio"]:.2f} times a plain one, timed in turn on one batch '
        f'({1000 * times["distilled"]:.0f} ms and {1000 * times["plain"]:.0f} ms; the teacher alone '
        f'{1000 * times["teacher"]:.0f} ms, which makes {times["ratio_bound"]:.2f} at best).',
        '',
        '![top-1 after each epoch, mean and range over seeds](curves.png)',
        '',
        f'Dense checkpoint `{content["checkpoint"]}` (sha256 {content["sha256"][:12]}...).',
    ]
    if 'command' in content:
        lines += ['', '```', content['command'], '```']
    return '\n'.join(lines) + '\n'


def draw_curves(content: dict[str, Any]) -> Figure:
    """Top-1 by epoch: mean over seeds, and the range between the best and the worst."""
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    axes.axhline(content['dense']['top1'], color='black', linestyle=':', label='dense')
    for k, row in enumerate(content['rows']):
        plot_runs(axes, row['curves'], k, f'{row["title"]}: {row["mean"]:.2f}')
        if row['key'] == REFERENCE:
            axes.axhline(row['mean'], color=style_of(k)['color'], linestyle=':', linewidth=1)
    axes.set(xlabel='epoch', ylabel='top-1 %')
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def over_vanilla(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row's ``mean``, ``interval`` and ``established`` of ``paired_difference``; None for vanilla, or without it."""
    if row['key'] == REFERENCE or row['over_vanilla'] is None:
        return None
    return {'mean': row['over_vanilla'], 'interval': row['interval'], 'established': row['established']}


def _over_vanilla(row: dict[str, Any]) -> str:
    difference = over_vanilla(row)
    return '' if difference is None else difference_text(difference, 2)


def _lr(row: dict[str, Any], content: dict[str, Any]) -> float:
    return content['options']['finetune_lr' if row['start'] else 'lr']


def _costs(counts: dict[str, int]) -> tuple[str, str]:
    return f'{counts["macs"] / 1e6:.1f} M', f'{counts["params"] / 1e6:.3f} M'


def _line(*cells: str) -> str:
    return f'| {" | ".join(cells)} |'
