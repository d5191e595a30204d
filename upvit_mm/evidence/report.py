"""The report of an experiment: ``evidence.md``, and ``evidence.json`` with every figure of every seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upvit_mm.compare.cells import Count, Difference, Figure
from upvit_mm.evidence.results import CLAIMS, MEASURES, StudyFound, correlation, rows_in
from upvit_mm.evidence.studies import TITLES, Row
from upvit_mm.files import write_text_atomically
from upvit_mm.table import Table
from upvit_mm.version import __version__

HOW = (
    'Values are means over seeds ± sample standard deviation, on the validation pictures. Each seed has its own dense '
    "network. Differences are paired by seed, with their 95 % interval (Student's t); bold ones are established: the "
    'whole interval is above or below 0.'
)


def write_report(folder: Path, studies: Sequence[StudyFound], about: dict[str, Any]) -> Path:
    """Write the report of what is there so far.

    Args:
        folder: the work dir of the experiment.
        studies: the figures.
        about: scale, machine, command, versions and minutes; written into both files.

    Returns:
        ``evidence.md``.
    """
    studies = [study for study in studies if study.metrics]
    content = {**about, 'upvit_mm_version': __version__, 'studies': [as_data(study) for study in studies]}
    content['correlation'] = correlations(studies)
    write_text_atomically(folder / 'evidence.json', json.dumps(content, indent=2) + '\n')
    lines = ['# Evidence', '', f'Scale {about["scale"]}, {about["machine"]}. {HOW}', '']
    for study in studies:
        lines += section(study)
    lines += correlation_lines(content['correlation'])
    lines += ['```', about['command'], '```']
    return write_text_atomically(folder / 'evidence.md', '\n'.join(lines) + '\n')


def section(study: StudyFound) -> list[str]:
    """Tables and sentences of one study."""
    lines = [f'## {study.study.data}, {study.study.family}', '', *rows_table(study).markdown(), '']
    lines += [*differences_table(study).markdown(), '']
    for metric in study.metrics:
        lines += [f'- {sentence}' for sentence in sentences(study, metric)]
    return [*lines, '']


def rows_table(study: StudyFound) -> Table:
    """A row for each network: costs, the metric at once and after training, consistency at once."""
    first, *_ = study.metrics
    header = ['network', 'seeds', 'epochs', 'MACs', 'params', 'ms', f'{first} at once', *study.metrics, 'CKA at once']
    return Table(header, [_cells(study, row, first) for row in rows_in(study.study) if study.values(row.name, first)])


def _cells(study: StudyFound, row: Row, first: str) -> list[Any]:
    costs = {key: _mean(study.values(row.name, key, 'costs')) for key in ('macs', 'params', 'latency')}
    latency = costs['latency']
    return [
        TITLES[row.name],
        len(study.values(row.name, first)),
        study.epochs[row.name],
        Count(costs['macs'], digits=0),
        Count(costs['params'], digits=1),
        Figure(None if latency is None else 1000 * latency, digits=0),
        _over_seeds(study.values(row.name, first, 'one_shot')),
        *(_over_seeds(study.values(row.name, metric)) for metric in study.metrics),
        _over_seeds(study.values(row.name, 'cka', 'consistency'), digits=3),
    ]


def differences_table(study: StudyFound) -> Table:
    """Each of ``CLAIMS`` that has figures."""
    rows = []
    for row, other in CLAIMS:
        found = [study.difference(row, other, metric) for metric in study.metrics]
        if any(found):
            cells = [None if one is None else Difference.of(one) for one in found]
            rows.append([f'{TITLES[row]} minus {TITLES[other]}', *cells])
    return Table(['difference', *study.metrics], rows)


def sentences(study: StudyFound, metric: str) -> list[str]:
    """What is established and what is not, in words."""
    said = []
    for row, other in CLAIMS:
        found = study.difference(row, other, metric)
        if found is None or found['mean'] is None:
            continue
        if found['interval'] is None:
            how = 'one seed, so nothing is established'
        elif not found['established']:
            how = 'not established: the interval includes 0'
        else:
            how = 'established: UP is above' if found['mean'] > 0 else 'established: UP is below'
        said.append(f'{metric}, {TITLES[row]} against {TITLES[other]}: {found["mean"]:+.1f}, {how}.')
    return said


def correlations(studies: Sequence[StudyFound]) -> list[dict[str, Any]]:
    """The rank correlation of each measure with box AP after fine-tuning, over all detectors."""
    detectors = [study for study in studies if study.study.is_detector]
    found = [{'measure': m, **correlation(detectors, m, 'box AP')} for m in (*MEASURES, 'one-shot AP')]
    return [entry for entry in found if entry['rho'] is not None]


def correlation_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """The table of ``correlations``; nothing without any."""
    if not found:
        return []
    table = Table(
        ['measure before training', "Spearman's rho", 'p', 'variants'],
        [[e['measure'], f'{e["rho"]:.2f}', f'{e["p"]:.1g}', e['variants']] for e in found],
    )
    title = "## Do the measures predict the share of the dense detector's box AP after training?"
    return [title, '', *table.markdown(), '']


def as_data(study: StudyFound) -> dict[str, Any]:
    """Every figure of a study as plain data."""
    differences = [
        {'row': row, 'other': other, 'metric': metric, **found}
        for row, other in CLAIMS
        for metric in study.metrics
        if (found := study.difference(row, other, metric)) is not None
    ]
    by_seed = {str(seed): {name: asdict(own) for name, own in rows.items()} for seed, rows in study.by_seed.items()}
    about = {'data': study.study.data, 'family': study.study.family, 'config': study.study.config}
    return {**about, 'epochs': study.epochs, 'seeds': by_seed, 'differences': differences}


def _mean(values: dict[int, float]) -> float | None:
    return statistics.fmean(values.values()) if values else None


def _over_seeds(values: dict[int, float], digits: int = 1) -> Figure:
    spread = statistics.stdev(values.values()) if len(values) > 1 else None
    return Figure(_mean(values), spread, digits)
