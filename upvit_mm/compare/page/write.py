"""Write the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upvit_mm.compare.cells import Code
from upvit_mm.compare.classifier_report import ONE_DENSE
from upvit_mm.compare.classifier_table import ClassifierTable
from upvit_mm.compare.detector_report import what_varies
from upvit_mm.compare.detector_table import UNCOUNTED
from upvit_mm.compare.page.charts import classifier_charts, detector_charts, picture_uri
from upvit_mm.compare.page.detections import detections, first_pictures
from upvit_mm.compare.page.frame import page_template, versions
from upvit_mm.compare.page.in_place import InPlace
from upvit_mm.compare.page.sources import CLASSIFIERS, CONSISTENCY, PRUNING, DetectorRuns, read_runs
from upvit_mm.compare.page.tables import (
    COST_HEADER,
    ap_by_area,
    before_training,
    classifier_table,
    explained,
    headline,
    kept_widths,
    last_stage,
    pruned_costs,
)
from upvit_mm.compare.paired import how_differences
from upvit_mm.compare.token_table import TokenTable
from upvit_mm.files import write_text_atomically
from upvit_mm.pruning import PrunePlan
from upvit_mm.table import Table

Folder = str | Path
Record = Mapping[str, Any]  # keys of a pruning's report.json


def write_page(
    path: Folder,
    title: str,
    detectors: Sequence[Folder] = (),
    classifiers: Folder | None = None,
    consistency: Folder | None = None,
    pruning: Folder | None = None,
    in_place: Folder | None = None,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML page, with a section for everything that is given.

    Args:
        path: path of the page.
        title: its heading.
        detectors: work dirs of ``tools/compare_detectors.py``.
        classifiers: work dir of ``tools/compare_classifiers.py``.
        consistency: work dir of ``tools/compare_consistency.py``.
        pruning: work dir of ``tools/prune.py`` for a classifier.
        in_place: work dir of ``tools/prune.py`` for one of the detectors that ``detectors`` hold.
        notes: paragraphs below the heading.
        commands: commands before those that the tools recorded.

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: a file of the tool or a picture of the test data is missing.
        ValueError: a damaged file; a detector pruned in place that is in none of the comparisons.
    """
    runs = read_runs(detectors)
    compared = None if classifiers is None else ClassifierTable.of(CLASSIFIERS.read(classifiers))
    report = None if pruning is None else PRUNING.read(pruning)
    contrast = None if consistency is None else TokenTable.of(CONSISTENCY.read(consistency))
    cut = None if in_place is None else InPlace.of(in_place, runs)
    if not (runs or compared or report or contrast):
        raise ValueError('a page needs at least one folder of detectors, classifiers, consistency or pruning.')
    recorded = [compared and compared.command, report and report.get('command'), *(r.table.command for r in runs)]
    recorded += [cut and cut.report.get('command'), contrast and contrast.command]
    values = {
        'title': title,
        'notes': notes,
        'runs': runs,
        'compared': compared,
        'report': report,
        'contrast': contrast,
        'in_place': cut,
        'commands': list(dict.fromkeys([*commands, *filter(None, recorded)])),
        'versions': versions(),
        'hashes': _hashes(runs, compared, report, contrast),
    }
    values |= _sections(runs, compared, report, contrast)
    values['headline'] = headline(runs, compared, cut) if runs else None
    return write_text_atomically(path, page_template('page.html').render(values))


def _sections(
    runs: Sequence[DetectorRuns], compared: ClassifierTable | None, report: Record | None, contrast: TokenTable | None
) -> dict[str, Any]:
    """Tables, charts and pictures."""
    tested = list({r.table.tested for r in runs})
    values: dict[str, Any] = {
        'headline_differences': '',
        'detectors': [
            {
                'title': r.title,
                'found': r.table,
                'varies': what_varies(r.table),
                'charts': detector_charts(r.table, f'detector{k}'),
                'ap': ap_by_area(r.table),
                'costs': r.table.cost_table(COST_HEADER),
                'uncounted': UNCOUNTED if any(row.detector_macs is None for row in r.table.rows) else '',
            }
            for k, r in enumerate(runs)
        ],
        'detections': [detections(first_pictures(r)) for r in runs],
        'tested': tested[0] if len(tested) == 1 else 'the test data',
        'trainings': '; '.join(f'{r.title}: {r.table.training}' for r in runs),
    }
    if any(len(r.table.rows) > 1 for r in runs):
        values['headline_differences'] = how_differences(len(runs[0].table.seeds))
    if compared:
        values |= {'classifiers': classifier_table(compared), 'classifier_charts': classifier_charts(compared)}
        values['classifier_differences'] = f'{how_differences(len(compared.options["seeds"]))} {ONE_DENSE}'
    if report:
        plan = PrunePlan.load(report['folder'] / 'plan.json')
        values |= {'widths': kept_widths(plan), 'costs': pruned_costs(report)}
        values['one_shot'] = before_training(report) if report['held_out'] else None
    if contrast:
        tables = [(size, contrast.stages(size)[-1], last_stage(contrast, size)) for size in contrast.sizes]
        values |= {'last_stages': tables, 'explained': explained(contrast), 'pictures': _pictures(contrast)}
    return values


def _pictures(contrast: TokenTable) -> list[dict[str, Any]]:
    """Pictures of the comparison of consistency, with their descriptions."""
    names, sizes = ', '.join(contrast.groups), ', '.join(contrast.sizes)
    texts = {
        'contrast.png': f'Every measure by stage, one bar for each of {names}, at {sizes}',
        'queries.png': f'How alike one token of a picture is to all others at the last stage: dense, {names}',
    }
    if told := contrast.predicted:
        best = told['rows'][0]
        texts['predicted.png'] = (
            f'{told["ap"]} against every measure at {told["size"]}, one dot for each network; ranks agree best for '
            f'{best["measure"]} {best["stage"]}, Spearman {best["spearman"]:.2f}'
        )
    found = {contrast.folder / name: text for name, text in texts.items() if (contrast.folder / name).is_file()}
    return [{**picture_uri(path), 'text': text} for path, text in found.items()]


def _hashes(
    runs: Sequence[DetectorRuns], compared: ClassifierTable | None, report: Record | None, contrast: TokenTable | None
) -> Table:
    """Every file in the records with its SHA-256, once, from the dense network to the detectors."""
    files = [('dense classifier', compared.checkpoint, compared.sha256)] if compared else []
    files += [('dense classifier', report['checkpoint'], report['sha256'])] if report else []
    for r in runs:
        for row in r.table.rows:
            if r.table.trained:  # otherwise it is the whole detector, and its run names it
                files.append((f'backbone {row.name}', row.checkpoint, row.sha256))
            for run in row.runs:
                what = f'{r.title}, {row.name}' + ('' if run['seed'] is None else f', seed {run["seed"]}')
                files.append((what, run['checkpoint'], run['checkpoint_sha256']))
    networks = contrast.networks if contrast else {}
    files += [(name, network['checkpoint'], network.get('sha256')) for name, network in networks.items()]
    once: dict[str, list[Any]] = {}
    for what, file, sha256 in files:
        if sha256:
            once.setdefault(sha256, [what, Code(file), Code(sha256)])
    return Table(['what', 'file', 'SHA-256'], list(once.values()))
