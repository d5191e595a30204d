"""Reports of comparisons: tables as Markdown and CSV, everything as JSON, and the pictures beside them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from upvit_mm.compare.seeds import mean_over_seeds, std_over_seeds
from upvit_mm.consistency.measure import Results
from upvit_mm.consistency.metrics import LOWER_IS_BETTER, METRICS
from upvit_mm.files import write_atomically, write_text_atomically
from upvit_mm.version import __version__

Row = tuple[str, ...]
EXPLAINED = {  # by the names of METRICS
    'cka': 'centred kernel alignment: linear, unbiased, over the tokens of all images',
    'cka_within': 'CKA of the tokens of one image each, so that differences between images do not count',
    'relation': 'correlation of the token-by-token cosine similarities of both networks, mean over images',
    'cosine': 'cosine similarity of dense tokens with what a ridge map makes of the pruned ones; the map is fitted on '
    'the first half of the images and judged on the others',
    'r2': 'share of the variance of dense tokens that this map explains',
    'kept_error': 'relative distance to the channels of the dense network that were kept; lower is better',
}


def measured(results: Results) -> list[str]:
    """The measures that results hold, in their order."""
    stage = next(iter(next(iter(results.values())).values()))
    return [name for name in METRICS if name in stage]


def stage_rows(stages: Mapping[str, Mapping[str, Any]]) -> tuple[Row, list[Row]]:
    """Header and one row a stage of the results at one size."""
    names = [name for name in METRICS if name in next(iter(stages.values()))]
    rows = []
    for label, figures in stages.items():
        grid = 'x'.join(map(str, figures['grid']))
        rows.append((label, grid, *(_number(figures[name]) for name in names)))
    return ('stage', 'grid (both)', *(METRICS[name] for name in names)), rows


def write_comparison(folder: Path, content: dict[str, Any], figures: Mapping[str, Figure]) -> None:
    """``consistency.json``, ``consistency.md`` and pictures.

    Args:
        folder: where.
        content: ``dense`` and ``pruned`` (records of the networks), ``settings``, and ``results`` of ``compare``.
        figures: by the name of their ``.png`` file.
    """
    lines = ['# Token consistency', '']
    for side in ('dense', 'pruned'):
        lines += [f'{side.capitalize()}: {_described(content[side])}.', '']
    for size, stages in content['results'].items():
        lines += [f'## {size}', '', *_markdown(*stage_rows(stages)), '']
    lines += [*_explained_lines(), *_settings_lines(content), *(f'![{name[:-4]}]({name})' for name in figures), '']
    _write(folder, 'consistency', content, lines, figures)


def write_contrast(folder: Path, content: dict[str, Any], figures: Mapping[str, Figure]) -> None:
    """``contrast.json``, ``contrast.md``, ``contrast.csv`` and pictures.

    Args:
        folder: where.
        content: ``results`` of ``contrast``; if wanted ``groups`` (networks that share a row, see ``seeds``), ``macs``
            (by name and size), ``dense``, ``settings``, ``command``, ``over`` (differences to the row ``to``, with
            ``rows`` of them by title, size, stage and measure, and ``how``), ``foretold`` (``rows`` of
            ``validity.correlations`` with ``ap``, ``size`` and ``file``).
        figures: by the name of their ``.png`` file.
    """
    results = content['results']
    groups = content.get('groups') or {name: [name] for name in results}
    means, spreads = mean_over_seeds(results, groups), std_over_seeds(results, groups)
    lines = ['# Token consistency of networks beside one another', '']
    if 'dense' in content:
        lines += [f'Dense: {_described(content["dense"])}.', '']
    if any(len(names) > 1 for names in groups.values()):
        lines += ['Mean ± standard deviation where a network was made with several seeds.', '']
    for size in next(iter(results.values())):
        for metric in METRICS:
            rows = []
            for title, found in means.items():
                if metric in measured(found):
                    macs = [content.get('macs', {}).get(name, {}).get(size) for name in groups[title]]
                    cells = [_spread(s[metric], spreads[title][size][k][metric]) for k, s in found[size].items()]
                    rows.append((title, '-' if None in macs else f'{fmean(macs) / 1e9:.4f} G', *cells))
            if rows:
                labels = next(iter(means.values()))[size]
                lines += [f'## {METRICS[metric]}, {size}', '', *_markdown(('network', 'MACs', *labels), rows), '']
    if 'over' in content:
        lines += _over_lines(content['over'])
    if 'foretold' in content:
        lines += [*_foretold_lines(content['foretold']), '']
    lines += [*_explained_lines(), *_settings_lines(content), *(f'![{name[:-4]}]({name})' for name in figures), '']
    write_text_atomically(folder / 'contrast.csv', contrast_csv(results, content.get('macs', {})))
    _write(folder, 'contrast', content, lines, figures)


def contrast_csv(results: Mapping[str, Results], macs: Mapping[str, Mapping[str, int]]) -> str:
    """One line for each variant, size and stage."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['variant', 'size', 'stage', 'height', 'width', 'tokens', 'macs', *METRICS])
    for variant, sizes in results.items():
        for size, stages in sizes.items():
            for stage, figures in stages.items():
                cells = [figures.get(name, '') for name in METRICS]
                costs = macs.get(variant, {}).get(size, '')
                writer.writerow([variant, size, stage, *figures['grid'], figures['tokens'], costs, *cells])
    return text.getvalue()


def check_thresholds(results: Results, thresholds: Mapping[str, float], last_stage_only: bool = False) -> None:
    """The gate: every measure at or above its threshold, at every size and stage.

    Args:
        results: of ``compare``.
        thresholds: by name of a measure that is better when higher.
        last_stage_only: judge the last stage alone.

    Raises:
        ValueError: an unknown measure, or one below its threshold or not defined: the worst and the count.
    """
    known = [name for name in METRICS if name not in LOWER_IS_BETTER]
    for name, least in thresholds.items():
        if name not in known or not isinstance(least, (int, float)):
            raise ValueError(f'threshold {name} = {least!r}: must be a number for one of {", ".join(known)}.')
    below = []
    for size, stages in results.items():
        for label in list(stages)[-1:] if last_stage_only else stages:
            for name, least in thresholds.items():
                value = stages[label][name]
                if not value >= least:  # NaN too
                    below.append((value - least, f'{name} = {_number(value)} < {least:g} in {label} at {size}'))
    if below:
        worst = min(below, key=lambda entry: -math.inf if math.isnan(entry[0]) else entry[0])[1]
        raise ValueError(f'token consistency is too low: {worst} ({len(below)} below their threshold in all).')


def _explained_lines() -> list[str]:
    measures = [f'- **{METRICS[name]}**: {text}.' for name, text in EXPLAINED.items()]
    scale = f'All but {METRICS["kept_error"]} are 1 for equal representations and about 0 for unrelated ones.'
    return [*measures, '', scale, '']


def _over_lines(over: Mapping[str, Any]) -> list[str]:
    """Differences at the last stage: a table for each size, a row for each network, a column for each measure."""
    lines = []
    for size, stages in next(iter(over['rows'].values())).items():
        stage = list(stages)[-1]
        found = {title: sizes[size][stage] for title, sizes in over['rows'].items()}
        names = [name for name in METRICS if any(name in differences for differences in found.values())]
        rows = [(title, *(_difference(own.get(name)) for name in names)) for title, own in found.items()]
        header = ('network', *(METRICS[name] for name in names))
        lines += [f'## Over {over["to"]}, {stage}, {size}', '', *_markdown(header, rows), '']
    return [*lines, over['how'], '']


def _difference(difference: Mapping[str, Any] | None) -> str:
    """Bold where it is established; without an interval where there is one seed."""
    if difference is None or difference['mean'] is None:
        return '-'
    if difference['interval'] is None:
        return f'{difference["mean"]:+.4f} (one seed)'
    low, high = difference['interval']
    text = f'{difference["mean"]:+.4f} [{low:+.4f}, {high:+.4f}]'
    return f'**{text}**' if difference['established'] else text


def _foretold_lines(foretold: Mapping[str, Any]) -> list[str]:
    header = ('measure', 'stage', 'Spearman', 'p', 'networks')
    rows = [
        (METRICS.get(r['measure'], 'MACs'), r['stage'], *(_number(r[k]) for k in ('spearman', 'p')), str(r['networks']))
        for r in foretold['rows']
    ]
    intro = f'How measures at {foretold["size"]} rank the networks, against {foretold["ap"]} of `{foretold["file"]}`:'
    return ['## Does it foretell AP?', '', intro, '', *_markdown(header, rows)]


def _write(folder: Path, name: str, content: Any, lines: Sequence[str], figures: Mapping[str, Figure]) -> None:
    for file, figure in figures.items():
        write_atomically(folder / file, lambda part, figure=figure: figure.savefig(part, format='png', dpi=110))
    write_text_atomically(folder / f'{name}.md', '\n'.join(lines))
    content = _plain({'upvit_mm_version': __version__, **content})
    write_text_atomically(folder / f'{name}.json', json.dumps(content, indent=2, allow_nan=False) + '\n')


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _described(record: Mapping[str, Any]) -> str:
    arch = record['arch']
    digest = f', sha256 {record["sha256"][:12]}...' if 'sha256' in record else ''
    return f'{arch["name"] or arch["family"]}, `{record["checkpoint"]}` in `{record["config"]}`{digest}'


def _settings_lines(content: Mapping[str, Any]) -> list[str]:
    settings = content.get('settings', {})
    lines = [f'{", ".join(f"{name} {value}" for name, value in settings.items())}.', ''] if settings else []
    return [*lines, '```', content['command'], '```', ''] if 'command' in content else lines


def _markdown(header: Row, rows: Sequence[Row]) -> list[str]:
    rule = '|'.join('---' if k == 0 else '---:' for k in range(len(header)))
    return [f'| {" | ".join(header)} |', f'|{rule}|', *(f'| {" | ".join(row)} |' for row in rows)]


def _spread(mean: float, std: float) -> str:
    return _number(mean) if math.isnan(std) else f'{mean:.4f} ± {std:.4f}'


def _number(value: float) -> str:
    return 'not defined' if math.isnan(value) else f'{value:.4f}'
