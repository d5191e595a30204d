"""The report of an experiment: ``evidence.md``, and ``evidence.json`` with every figure of every seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upvit_mm.compare.cells import Count, Difference, Figure
from upvit_mm.consistency.metrics import METRICS
from upvit_mm.evidence.results import (
    AT_ONCE,
    CLAIMS,
    MEASURES,
    StudyFound,
    Variant,
    rank_correlation,
    rows_in,
    variants,
)
from upvit_mm.evidence.studies import ROWS, SHORT, TITLES, Row
from upvit_mm.files import write_text_atomically
from upvit_mm.table import Table
from upvit_mm.version import __version__

HOW = (
    'Values are means over seeds ± sample standard deviation, on the validation pictures. Each seed has its own dense '
    "network. Differences are paired by seed, with their 95 % interval (Student's t); bold ones are established: the "
    'whole interval is above or below 0. Each is for itself: of many differences without any effect one in 20 is bold.'
)
OUTDATED = (
    'These results are there, but not from the commands, configs and version of now. The command below makes them '
    'anew: {}.'
)
PREDICTS = "Do the measures predict the share of the dense detector's box AP after training?"
PRUNED = ', without token dropping'
LABELS = {  # of columns beside those of each study
    'all': 'after training, all',
    'pruned': f'after training{PRUNED}',
    'at once': 'AP at once instead, all',
    'pruned, at once': f'AP at once{PRUNED}',
}
PREDICTS_HOW = (
    "Spearman's rank correlation. A variant is a network with a seed; p takes the variants as independent, which those "
    'of one seed are not.'
)
TOOK = 'What it took'
PARTS = ('score', 'one_shot')
COSTS = ('macs', 'detector_macs', 'params', 'latency')
HEADLINE = (  # row, before (one_shot) or after (score) training
    ('dense', 'score'),
    ('up-50', 'one_shot'),
    ('up-50', 'score'),
    ('dense-on', 'score'),
    ('vanilla-50', 'score'),
    ('vanilla-50-long', 'score'),
    ('dropping-50', 'one_shot'),
    ('dropping-50', 'score'),
)


def write_report(folder: Path, studies: Sequence[StudyFound], about: dict[str, Any]) -> Path:
    """Write the report of what is there so far.

    Args:
        folder: the work dir of the experiment.
        studies: the figures; each has some.
        about: scale, machine, command, minutes, and names of outdated steps; written into both files.

    Returns:
        ``evidence.md``.
    """
    content = {**about, 'upvit_mm_version': __version__, 'studies': [as_data(study) for study in studies]}
    content['correlation'] = correlations(studies)
    write_text_atomically(folder / 'evidence.json', json.dumps(content, indent=2) + '\n')
    lines = ['# Evidence', '', f'Scale {about["scale"]}, {about["machine"]}. {HOW}', '']
    for study in studies:
        lines += section(study)
    if table := correlation_table(studies):
        lines += [f'## {PREDICTS}', '', PREDICTS_HOW, '', *table.markdown(), '']
    if table := minutes_table(about['minutes']):
        lines += [f'## {TOOK}', '', *table.markdown(), '']
    if about['outdated']:
        lines += [OUTDATED.format(', '.join(about['outdated'])), '']
    lines += ['```', about['command'], '```']
    return write_text_atomically(folder / 'evidence.md', '\n'.join(lines) + '\n')


def section(study: StudyFound) -> list[str]:
    """Tables and sentences of one study."""
    lines = [f'## {title_of(study)}', '', *rows_table(study).markdown(), '', f'{costs_of(study)}.', '']
    lines += [*differences_table(study).markdown(), '']
    return [*lines, *(f'- {sentence}' for sentence in sentences(study)), '']


def rows_table(study: StudyFound) -> Table:
    """A row for each network: costs, the metric at once and after training, consistency at once."""
    first, *_ = study.metrics
    costs = ['MACs', *(['of the detector'] if study.study.is_detector else []), 'params', 'ms']
    header = ['network', 'seeds', 'epochs', *costs, f'{first} at once', *study.metrics, 'CKA at once']
    known = [row for row in rows_in(study.study) if any(study.values(row.name, first, part) for part in PARTS)]
    return Table(header, [_cells(study, row, first) for row in known])


def _cells(study: StudyFound, row: Row, first: str) -> list[Any]:
    costs = {key: _mean(study.values(row.name, key, 'costs')) for key in COSTS}
    latency = costs['latency']
    return [
        TITLES[row.name],
        len(study.values(row.name, first)),
        study.epochs[row.name],
        Count(costs['macs'], digits=0),
        *([Count(costs['detector_macs'], digits=0)] if study.study.is_detector else []),
        Count(costs['params'], digits=1),
        Figure(None if latency is None else 1000 * latency, digits=0),
        _over_seeds(study.values(row.name, first, 'one_shot')),
        *(_over_seeds(study.values(row.name, metric)) for metric in study.metrics),
        _over_seeds(study.values(row.name, 'cka', 'consistency'), digits=3),
    ]


def differences_table(study: StudyFound) -> Table:
    """Each of ``CLAIMS`` that has figures: the first metric at once, and all after training."""
    first, *_ = study.metrics
    rows = []
    for row, other in CLAIMS:
        found = [study.difference(row, other, first, at_once=True)]
        found += [study.difference(row, other, metric) for metric in study.metrics]
        if any(found):
            cells = [None if one is None else Difference.of(one) for one in found]
            rows.append([f'{TITLES[row]} minus {TITLES[other]}', *cells])
    return Table(['difference', f'{first} at once', *study.metrics], rows)


def sentences(study: StudyFound) -> list[str]:
    """What is established and what is not, in words, for each of ``differences_table``."""
    first, *_ = study.metrics
    said = []
    for metric, at_once in ((first, True), *((metric, False) for metric in study.metrics)):
        for row, other in CLAIMS:
            found = study.difference(row, other, metric, at_once)
            if found is None or found['mean'] is None:
                continue
            if found['interval'] is None:
                how = 'one seed, so nothing is established'
            elif not found['established']:
                how = 'not established: the interval includes 0'
            else:
                how = 'established: above' if found['mean'] > 0 else 'established: below'
            when = f'{metric} at once' if at_once else metric
            said.append(f'{when}, {TITLES[row]} against {TITLES[other]}: {found["mean"]:+.1f}, {how}.')
    return said


def headline(studies: Sequence[StudyFound]) -> Table:
    """The first metric of each study: the rows of the main claim, before and after training."""
    rows = []
    for study in studies:
        first, *_ = study.metrics
        cells = [_over_seeds(study.values(row, first, part)) for row, part in HEADLINE]
        rows.append([f'{title_of(study)}, {first}', len(study.values('up-50', first)), *cells])
    columns = [SHORT[row] + (', at once' if part == 'one_shot' else '') for row, part in HEADLINE]
    return Table(['', 'seeds', *columns], rows)


def costs_of(study: StudyFound) -> str:
    """What the MACs of a study's tables are of."""
    return f'MACs of {"the backbone" if study.study.is_detector else "the network"} at {study.size} pixels'


def title_of(study: StudyFound) -> str:
    """Data and network of a study."""
    return f'{study.study.data}, {study.study.family}'


def variants_by_study(studies: Sequence[StudyFound], measure: str) -> dict[str, list[Variant]]:
    """The detectors' variants of a measure with box AP: all, the pruned ones, and those of each study where there are
    several.

    Pruned ones apart: token dropping is another kind of network, and two clouds of points correlate by their places.
    """
    detectors = [study for study in studies if study.study.is_detector]
    found = {'all': variants(detectors, measure, 'box AP')}
    found['pruned'] = without_dropping(found['all'])
    if len(detectors) > 1:
        found |= {title_of(study): variants([study], measure, 'box AP') for study in detectors}
    return found


def without_dropping(found: Sequence[Variant]) -> list[Variant]:
    """The pruned ones of some variants."""
    dropping = {row.name for row in ROWS if row.how == 'dropping'}
    return [one for one in found if one.row not in dropping]


def correlations(studies: Sequence[StudyFound]) -> list[dict[str, Any]]:
    """The rank correlation of each measure with box AP after fine-tuning, over all detectors, the pruned ones and each
    study's; and with box AP before it, ``'at once'`` over all and ``'pruned, at once'``."""
    found, detectors = [], [study for study in studies if study.study.is_detector]
    for measure in (*MEASURES, AT_ONCE):
        each = {name: rank_correlation(own) for name, own in variants_by_study(studies, measure).items()}
        own = [] if measure == AT_ONCE else variants(detectors, measure, 'box AP', at_once=True)
        each |= {'at once': rank_correlation(own), 'pruned, at once': rank_correlation(without_dropping(own))}
        if each['all']['rho'] is not None:
            found.append({'measure': measure, 'over': each})
    return found


def correlation_table(studies: Sequence[StudyFound]) -> Table | None:
    """The table of ``correlations``; None without any."""
    found = correlations(studies)
    if not found:
        return None
    names = list(found[0]['over'])
    titles = [f'{LABELS.get(name, name)} ({found[0]["over"][name]["variants"]} variants)' for name in names]
    rows = [[METRICS.get(e['measure'], e['measure']), *(_rho(e['over'][name]) for name in names)] for e in found]
    return Table(['measure before training', *titles], rows)


def _rho(found: dict[str, Any]) -> str | None:
    return None if found['rho'] is None else f'{found["rho"]:.2f} (p {found["p"]:.1g})'


def minutes_table(minutes: dict[str, float]) -> Table | None:
    """Minutes of each step, mean over seeds, for each study; None without a finished step."""
    by_step: dict[str, dict[str, list[float]]] = {}
    for name, value in minutes.items():
        data, family, _, row, part = name.split('/')
        by_step.setdefault(f'{row}, {part}', {}).setdefault(f'{data}, {family}', []).append(value)
    studies = list(dict.fromkeys(study for each in by_step.values() for study in each))
    if not studies:
        return None
    rows: list[list[Any]] = [
        [step, *(Figure(statistics.fmean(each[study])) if study in each else None for study in studies)]
        for step, each in by_step.items()
    ]
    total = [sum(sum(each.get(study, ())) for each in by_step.values()) for study in studies]
    return Table(['minutes of a seed', *studies], [*rows, ['all seeds together', *map(Figure, total)]])


def as_data(study: StudyFound) -> dict[str, Any]:
    """Every figure of a study as plain data."""
    differences = [
        {'row': row, 'other': other, 'metric': metric, 'at_once': at_once, **found}
        for row, other in CLAIMS
        for metric in study.metrics
        for at_once in (True, False)
        if (found := study.difference(row, other, metric, at_once)) is not None
    ]
    by_seed = {str(seed): {name: asdict(own) for name, own in rows.items()} for seed, rows in study.by_seed.items()}
    about = {'data': study.study.data, 'family': study.study.family, 'config': study.study.config}
    return {**about, 'epochs': study.epochs, 'seeds': by_seed, 'differences': differences}


def _mean(values: dict[int, float]) -> float | None:
    return statistics.fmean(values.values()) if values else None


def _over_seeds(values: dict[int, float], digits: int = 1) -> Figure:
    spread = statistics.stdev(values.values()) if len(values) > 1 else None
    return Figure(_mean(values), spread, digits)
