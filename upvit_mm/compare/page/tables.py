"""The tables of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upvit_mm.compare.cells import Count, Figure
from upvit_mm.compare.classifier_table import ClassifierTable
from upvit_mm.compare.detector_table import AREAS, KINDS, DetectorRow, DetectorTable
from upvit_mm.compare.page.in_place import InPlace
from upvit_mm.compare.page.sources import DetectorRuns
from upvit_mm.compare.token_report import EXPLAINED
from upvit_mm.compare.token_table import TokenTable
from upvit_mm.consistency.metrics import METRICS
from upvit_mm.pruning import PrunePlan, prunable_dims
from upvit_mm.pruning.table import block_name, stage_name
from upvit_mm.table import Group, Table

NOTHING = '\N{EN DASH}'
TOP1 = 'top\N{NON-BREAKING HYPHEN}1'
COST_HEADER = ('backbone', 'MACs', 'all MACs', 'backbone parameters', 'all parameters')
COST_HEADER += ('latency, ms', 'images/s', 'peak, MiB')


def headline(
    detectors: Sequence[DetectorRuns], compared: ClassifierTable | None = None, in_place: InPlace | None = None
) -> Table:
    """One row for each backbone of any detector: top-1 of its classifier, AP of every detector, costs.

    Args:
        detectors: the comparisons.
        compared: the comparison of classifiers that the backbones come from.
        in_place: one of the detectors, pruned in place; its rows come last.
    """
    backbones: dict[str, DetectorRow] = {}
    for runs in detectors:
        for row in runs.table.rows:
            backbones.setdefault(row.name, row)
    first = next(iter(backbones.values()))
    top1 = {name: top1_of(row, compared) if compared else None for name, row in backbones.items()}
    classified = any(top1.values())
    rows = []
    for name, row in backbones.items():
        cells = [cell for runs in detectors for cell in _ap_cells(runs.table, name)]
        macs = Count(row.macs, 'G', share=100 * row.macs / first.macs)
        params = Count(row.backbone_params, share=100 * row.backbone_params / first.backbone_params)
        rows.append([name, *([top1[name]] if classified else []), *cells, macs, params])
    for network, title in (in_place.networks if in_place else {}).items():
        cells = [cell for runs in detectors for cell in _cells_in_place(in_place, network, runs)]
        rows.append([title, *([None] if classified else []), *cells, *in_place.costs(first)])
    groups = [Group(runs.title, _ap_columns(runs.table)) for runs in detectors]
    return Table(['backbone', *([TOP1] if classified else []), *groups, 'MACs', 'parameters'], rows)


def ap_by_area(table: DetectorTable) -> Table:
    """AP of every backbone in %, by threshold and by size of the object: a group for boxes, one for masks."""
    names = ['AP', *(f'AP{name}' if name.isdigit() else name.upper() for name in AREAS.values())]
    metrics = [f'{kind}_{area}' for kind in table.kinds for area in ('mAP', *AREAS)]
    groups = [Group(KINDS[kind], names) for kind in table.kinds]
    return Table(['backbone', *groups], [[row.name, *map(row.ap, metrics)] for row in table.rows])


def top1_of(row: DetectorRow, compared: ClassifierTable) -> Figure | None:
    """Top-1 of the classifier that a detector's backbone comes from; None if it is not in the comparison."""
    if row.checkpoint is None:
        return None
    if row.sha256 == compared.sha256:
        return Figure(compared.dense['top1'])
    path, folder = Path(row.checkpoint).resolve(), compared.folder.resolve()
    if not path.is_relative_to(folder):
        return None
    place = path.relative_to(folder).parts[0]
    if place == 'pruning':
        return compared.before_training(path.name, digits=1)
    return next((Figure(r.mean, r.std) for r in compared.rows if r.key == place), None)


def classifier_table(compared: ClassifierTable) -> Table:
    """The dense network and every row of ``compare.json``."""
    header = [
        'network',
        'epochs',
        TOP1,
        'over vanilla',
        'epochs to vanilla',
        'MACs',
        'parameters',
    ]
    epochs, top1 = compared.options.get('dense_epochs') or NOTHING, Figure(compared.dense['top1'], digits=2)
    rows = [['dense', epochs, top1, None, NOTHING, *compared.costs(compared.dense)]]
    for row in compared.rows:
        rows.append([row.title, row.epochs, row.accuracy, row.over, row.reached, *compared.costs(compared.target)])
    return Table(header, rows)


def pruned_costs(report: Mapping[str, Any]) -> Table:
    """Every count of a pruning's ``report.json``: dense, pruned, and the share that is left in %."""
    dense, pruned = report['costs']['dense'], report['costs']['pruned']
    rows = [
        [name, Count(dense[name]), Count(pruned[name]), f'{100 * pruned[name] / dense[name]:.1f} %'] for name in dense
    ]
    return Table(['count', 'dense', 'pruned', 'left'], rows)


def before_training(report: Mapping[str, Any]) -> Table:
    """Results of the pruned network before any training, on held-out images."""
    rows = [
        [name, f'{judged["kl"]:.4f}', f'{judged["top1"]:.2f}' if 'top1' in judged else NOTHING]
        for name, judged in report['held_out'].items()
    ]
    return Table(['network', 'KL to dense', TOP1], rows)


def kept_widths(plan: PrunePlan) -> list[dict[str, Any]]:
    """For each stage of the dense network, kept and dense widths of its blocks; a removed block keeps nothing."""
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


def last_stage(found: TokenTable, size: str) -> Table:
    """Every measure of every network at the last stage, mean and spread over seeds, and differences to the first."""
    stage, measures = found.stages(size)[-1], found.last_measures(size)
    titles = ['with the dense network', *([f'over {found.over["to"]}'] if found.over else [])]
    rows = []
    for name in found.groups:
        cells = [found.figure(name, size, stage, measure, 3) for measure in measures]
        if found.over:
            cells += [found.difference(name, size, stage, measure, 3) for measure in measures]
        rows.append([name, found.cost(name, size), *cells])
    columns = [METRICS[measure] for measure in measures]
    return Table(['network', 'MACs', *(Group(title, columns) for title in titles)], rows)


def explained(found: TokenTable) -> dict[str, str]:
    """Explanations of the measures in the tables of ``last_stage``, by their titles."""
    shown = {measure for size in found.sizes for measure in found.last_measures(size)}
    return {METRICS[name]: text for name, text in EXPLAINED.items() if name in shown}


def _ap_columns(table: DetectorTable) -> list[str]:
    over = [f'over {table.baseline}'] if len(table.rows) > 1 else []
    return [column for kind in table.kinds for column in (f'{KINDS[kind]} AP', *over, f'{KINDS[kind]} AP50')]


def _ap_cells(table: DetectorTable, name: str) -> list[Any]:
    """AP, its difference to the baseline, and AP50 of every kind in %; None if the backbone is not in it."""
    row = next((row for row in table.rows if row.name == name), None)
    if row is None:
        return [None] * len(_ap_columns(table))
    cells: list[Any] = []
    for kind in table.kinds:
        over = [table.over(row, f'{kind}_mAP')] if len(table.rows) > 1 else []
        cells += [row.ap(f'{kind}_mAP'), *over, row.ap(f'{kind}_mAP_50')]
    return cells


def _cells_in_place(in_place: InPlace, network: str, runs: DetectorRuns) -> list[Any]:
    """The same of a detector that was pruned in place; None in the columns of other detectors."""
    table = runs.table
    if runs is not in_place.runs:
        return [None] * len(_ap_columns(table))
    cells: list[Any] = []
    for kind in table.kinds:
        ap, ap50 = (Figure.of(in_place.ap(network, f'{kind}_{area}'), scale=100) for area in ('mAP', 'mAP_50'))
        over = [in_place.over_baseline(network, f'{kind}_mAP')] if len(table.rows) > 1 else []
        cells += [ap, *over, ap50]
    return cells
