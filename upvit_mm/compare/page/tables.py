"""The tables of the page as plain values.

A figure is ``{'mean', 'std'}`` in the unit that is shown, ``std`` None where there is no spread; a difference is
``{'mean', 'interval', 'established'}``, ``interval`` None where there is one seed. What is unknown is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from upvit_mm.compare.classifier_report import ONE_SHOT, over_vanilla
from upvit_mm.compare.detector_report import AREAS, COSTS, KINDS
from upvit_mm.compare.page.sources import DetectorRuns
from upvit_mm.compare.paired import how_differences
from upvit_mm.compare.seeds import mean_over_seeds, std_over_seeds
from upvit_mm.compare.token_report import EXPLAINED
from upvit_mm.consistency.metrics import METRICS
from upvit_mm.pruning import PrunePlan, prunable_dims
from upvit_mm.pruning.table import block_name, stage_name

Record = Mapping[str, Any]
Figure = dict[str, Any]


def headline(detectors: Sequence[DetectorRuns], compared: Record | None = None) -> dict[str, Any]:
    """One row for each backbone of any detector: top-1 of its classifier, AP of every detector, costs.

    Args:
        detectors: the comparisons.
        compared: the comparison of classifiers that the backbones come from.
    """
    backbones: dict[str, Record] = {}
    for runs in detectors:
        for row in runs.rows:
            backbones.setdefault(row['name'], row)
    rows = [
        {
            'name': name,
            'top1': top1_of(row, compared) if compared else None,
            'cells': [cell for runs in detectors for cell in _ap_cells(runs, name)],
            'macs': row['macs'],
            'params': row['backbone_params'],
        }
        for name, row in backbones.items()
    ]
    groups = [{'title': runs.title, 'columns': _ap_columns(runs)} for runs in detectors]
    contrasted = any(len(runs.rows) > 1 for runs in detectors)
    how = how_differences(len(detectors[0].content['seeds'])) if contrasted else ''
    return {'groups': groups, 'rows': _with_shares(rows), 'size': detectors[0].content['size'], 'how': how}


def ap_by_area(runs: DetectorRuns) -> dict[str, Any]:
    """AP of every backbone in %, by threshold and by size of the object: a group for boxes, one for masks."""
    names = [f'AP{name}' if name.isdigit() else name.upper() for name in AREAS.values()]
    keys = [f'{kind}_{area}' for kind in runs.content['kinds'] for area in ('mAP', *AREAS)]
    rows = [
        {'name': row['name'], 'cells': [_figure(row['mean'][key], row['std'][key], 100) for key in keys]}
        for row in runs.rows
    ]
    return {
        'groups': [{'title': KINDS[kind], 'columns': ['AP', *names]} for kind in runs.content['kinds']],
        'rows': rows,
    }


def detector_costs(runs: DetectorRuns) -> list[dict[str, Any]]:
    """MACs, parameters and, where measured, ``speed``: latency in ms, images a second and the peak in MiB."""
    measured = runs.content['speed']
    rows = []
    for row in runs.rows:
        speed = None
        if measured:
            found = measured['detectors'][row['name']]
            latency = {name: 1000 * found['latency'][name] for name in ('low', 'median', 'high')}
            speed = {**latency, 'throughput': found['throughput'], 'peak': found['peak_bytes'] / 2**20}
        rows.append({'name': row['name'], 'speed': speed, **{name: row[name] for name in COSTS}})
    return rows


def top1_of(row: Record, compared: Record) -> Figure | None:
    """Top-1 of the classifier that a detector's backbone comes from; None when it is none of the comparison's.

    Args:
        row: of ``detectors.json``.
        compared: what ``CLASSIFIERS.read`` gives.
    """
    if row['checkpoint'] is None:
        return None
    if row['sha256'] == compared['sha256']:
        return _figure(compared['dense']['top1'])
    path, folder = Path(row['checkpoint']).resolve(), compared['folder'].resolve()
    if not path.is_relative_to(folder):
        return None
    place = path.relative_to(folder).parts[0]
    if place == 'pruning':
        return _figure((compared['one_shot'].get(ONE_SHOT.get(path.name)) or {}).get('top1'))
    return next((_figure(r['mean'], r['std']) for r in compared['rows'] if r['key'] == place), None)


def classifier_rows(compared: Record) -> list[dict[str, Any]]:
    """The dense network and every row of ``compare.json``."""
    dense = compared['dense']
    known = {'title': 'dense', 'epochs': compared['options'].get('dense_epochs'), 'over_vanilla': None, 'reached': None}
    rows = [{**known, 'top1': _figure(dense['top1']), 'macs': dense['macs'], 'params': dense['params']}]
    for row in compared['rows']:
        rows.append(
            {
                'title': row['title'],
                'epochs': row['epochs'],
                'top1': _figure(row['mean'], row['std']),
                'over_vanilla': _difference(over_vanilla(row)),
                'reached': row['epochs_to_vanilla'] or 'not reached',
                **compared['target'],
            }
        )
    return _with_shares(rows)


def pruned_costs(report: Record) -> list[dict[str, Any]]:
    """Every count of a pruning's ``report.json``: dense, pruned, and the share that is left in %."""
    dense, pruned = report['costs']['dense'], report['costs']['pruned']
    return [
        {'name': name, 'dense': dense[name], 'pruned': pruned[name], 'share': 100 * pruned[name] / dense[name]}
        for name in dense
    ]


def kept_widths(plan: PrunePlan) -> list[dict[str, Any]]:
    """By stage of the dense network, kept and dense widths of all its blocks; nothing is kept of a removed one."""
    dims = prunable_dims(plan.source_arch)

    def width(name: str, stays: bool = True) -> dict[str, float]:
        kept = len(plan.kept[name]) if stays else 0
        return {'kept': kept, 'dense': dims[name].size, 'share': 100 * kept / dims[name].size}

    stages = []
    for i, (pairs, depth) in enumerate(zip(plan.kept_blocks, plan.source_arch.depths)):
        attention, mlp = map(set, zip(*pairs))
        blocks = []
        for j in range(depth):
            name = block_name(i, j)
            widths = [width(f'{name}.{kind}', j in attention) for kind in ('qk', 'v')]
            blocks.append([*widths, width(f'{name}.mlp_hidden', j in mlp)])
        stages.append(
            {'embed': width(f'{stage_name(i)}.embed'), 'blocks': blocks, 'kept': len(pairs), 'dense': len(blocks)}
        )
    return stages


def last_stages(contrast: Record) -> list[dict[str, Any]]:
    """By input size, every measure of every network at the last stage, mean and spread over seeds, and differences."""
    results, over = _with_nan(contrast['results']), contrast.get('over')
    groups = contrast.get('groups') or {name: [name] for name in results}
    means, spreads = mean_over_seeds(results, groups), std_over_seeds(results, groups)
    tables = []
    for size, stages in next(iter(results.values())).items():
        stage = list(stages)[-1]
        present = [name for name in METRICS if any(name in found[size][stage] for found in means.values())]
        rows = []
        for title, found in means.items():
            figures = [(found[size][stage].get(name), spreads[title][size][stage].get(name)) for name in present]
            macs = [contrast.get('macs', {}).get(name, {}).get(size) for name in groups[title]]
            cost = None if None in macs else fmean(macs)
            cells = [_figure(*pair) for pair in figures]
            if over:
                own = over['rows'].get(title, {}).get(size, {}).get(stage, {})  # the first row has none
                cells += [_difference(own.get(name)) for name in present]
            rows.append({'name': title, 'macs': cost, 'cells': cells})
        columns = [METRICS[name] for name in present]
        groups = ['with the dense network', *([f'over {over["to"]}'] if over else [])]
        groups = [{'title': name, 'columns': columns} for name in groups]
        tables.append({'size': size, 'stage': stage, 'columns': columns, 'groups': groups, 'rows': rows})
    return tables


def explained(tables: Sequence[Record]) -> dict[str, str]:
    """What the measures in ``last_stages`` are, by their titles."""
    shown = {column for table in tables for column in table['columns']}
    return {METRICS[name]: text for name, text in EXPLAINED.items() if METRICS[name] in shown}


def _ap_columns(runs: DetectorRuns) -> list[str]:
    over = [f'over {runs.content["baseline"]}'] if len(runs.rows) > 1 else []
    return [column for kind in runs.content['kinds'] for column in (f'{KINDS[kind]} AP', *over, f'{KINDS[kind]} AP50')]


def _ap_cells(runs: DetectorRuns, name: str) -> list[Figure | None]:
    """AP, its signed difference to the baseline, and AP50 of every kind in %; None where the backbone is not in it."""
    row = next((row for row in runs.rows if row['name'] == name), None)
    if row is None:
        return [None] * len(_ap_columns(runs))
    cells: list[Figure | None] = []
    for kind in runs.content['kinds']:
        over = row['over_baseline'][f'{kind}_mAP']
        is_baseline = name == runs.content['baseline']
        difference = None if is_baseline else _difference(over, 100)
        ap, ap50 = (_figure(row['mean'][key], row['std'][key], 100) for key in (f'{kind}_mAP', f'{kind}_mAP_50'))
        cells += [ap, difference, ap50] if len(runs.rows) > 1 else [ap, ap50]
    return cells


def _figure(mean: float | None, std: float | None = None, scale: float = 1) -> Figure | None:
    if mean is None or math.isnan(mean):
        return None
    return {'mean': scale * mean, 'std': None if std is None or math.isnan(std) else scale * std}


def _difference(difference: Record | None, scale: float = 1) -> Figure | None:
    """What ``workflow.paired.paired_difference`` gives, in another unit."""
    if difference is None or difference['mean'] is None:
        return None
    interval = difference['interval'] and [scale * end for end in difference['interval']]
    return {'mean': scale * difference['mean'], 'interval': interval, 'established': difference['established']}


def _with_shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is left, in %, of the MACs and parameters of the first row."""
    for row in rows:
        row['shares'] = {count: 100 * row[count] / rows[0][count] for count in ('macs', 'params')}
    return rows


def _with_nan(value: Any) -> Any:
    """JSON has no NaN: the reports write None."""
    if isinstance(value, Mapping):
        return {key: _with_nan(entry) for key, entry in value.items()}
    return math.nan if value is None else value
