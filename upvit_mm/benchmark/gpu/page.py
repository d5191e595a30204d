"""A report as Markdown, with rows as in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from upvit_mm.benchmark.gpu.goals import GPU
from upvit_mm.table import Table

LABELS = ('network', 'work', 'batch', 'precision')
MET = {True: '**yes**', False: '**no**', None: 'not measured'}


def page_of(record: Mapping[str, Any]) -> str:
    """The page of a report; see ``make_report`` for its content."""
    return '\n'.join(_lines(record)) + '\n'


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    machine = record['machine']
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items() if version)
    yield f'# Report of {record["date"]}'
    yield ''
    yield f'{machine["device"]}, {machine["cores"]} CPU cores; {versions}. Setting: {record["setting"]}.'
    yield 'bf16 is autocast with weights in float32; fp32 uses the settings of torch (TF32 in convolutions only).'
    parts, rows = record['parts'], [row for part in record['parts'] for row in part['rows']]
    columns = ['part', 'status', 's', 'limit s']
    yield from _section('Parts', [Table(columns, [_part(part) for part in parts])])
    yield from (f'- {part["name"]}: {note}' for part in parts for note in [part['error'], *part['notes']] if note)
    yield from _section('Tests', [_tests(rows)])
    yield from _section('Times: median ms (GB at the peak)', list(_times(rows)))
    yield from _section('Scoring', [_scoring(rows)])
    yield from _section('Goals', [_goals(record['goals'])])
    if GPU not in machine['device']:
        yield f'The goals are for one {GPU}. This is another device.'


def _section(title: str, tables: Sequence[Table]) -> Iterator[str]:
    for k, table in enumerate(table for table in tables if table.rows):
        yield from ([''] if k else ['', f'## {title}', ''])
        yield from table.markdown()
        yield ''


def _part(part: Mapping[str, Any]) -> list[str]:
    return [part['name'], part['status'], f'{part["seconds"]:.0f}', f'{part["limit"]:.0f}']


def _tests(rows: Sequence[Mapping]) -> Table:
    figures = [[row[name] for name in ('passed', 'failed', 'skipped')] for row in rows if row['work'] == 'tests']
    return Table(['tests', 'passed', 'failed', 'skipped'], [['pytest', *cells] for cells in figures])


def _times(rows: Sequence[Mapping]) -> Iterator[Table]:
    """One table for each set of variants that were timed in turn."""
    timed = [row for row in rows if row.get('variant')]
    groups = [list(group) for _, group in groupby(timed, lambda row: [row[name] for name in LABELS])]
    for variants, alike in groupby(groups, lambda group: [row['variant'] for row in group]):
        body = [[_title(group[0]), *map(_time, group)] for group in alike]
        yield Table(['', *variants], body)


def _title(row: Mapping) -> str:
    images = f'{row["batch"]} image{"s" if row["batch"] > 1 else ""}'
    return f'{row["network"]} {row["work"]}, {images}, {row["precision"]}'


def _time(row: Mapping) -> str:
    text = f'{1e3 * row["seconds"]["median"]:.3g}'
    return text if row['peak_bytes'] is None else f'{text} ({row["peak_bytes"] / 1e9:.2f})'


def _scoring(rows: Sequence[Mapping]) -> Table:
    found = [row for row in rows if row['work'] == 'scoring']
    passes = list(found[0]['images_per_second']) if found else []
    header = ['network', 'channels', *(f'{name}: images/s' for name in passes), 'kl, 5,000 images: hours']
    body = [
        [row['network'], f'{row["channels"]:,}', *(f'{row["images_per_second"][name]:,.4g}' for name in passes)]
        + [f'{row["kl_hours"]:.3g}']
        for row in found
    ]
    return Table(header, body)


def _goals(goals: Sequence[Mapping]) -> Table:
    def figure(goal: Mapping) -> str:
        return '' if goal['measured'] is None else f'{goal["measured"]:.3g}'

    return Table(
        ['goal', 'limit', 'measured', 'met'],
        [[goal['text'], goal['limit'], figure(goal), MET[goal['met']]] for goal in goals],
    )
