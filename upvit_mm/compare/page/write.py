"""Writing the page."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.ticker import EngFormatter

from upvit_mm.compare.classifier_report import ONE_DENSE
from upvit_mm.compare.detector_report import what_varies
from upvit_mm.compare.page.charts import classifier_charts, detector_charts, picture_uri
from upvit_mm.compare.page.detections import detections
from upvit_mm.compare.page.sources import CLASSIFIERS, CONSISTENCY, PRUNING, DetectorRuns, read_runs
from upvit_mm.compare.page.tables import (
    Record,
    ap_by_area,
    classifier_rows,
    detector_costs,
    explained,
    headline,
    kept_widths,
    last_stages,
    pruned_costs,
)
from upvit_mm.compare.paired import how_differences
from upvit_mm.files import write_text_atomically
from upvit_mm.openmmlab import SUPPORTED, installed_version
from upvit_mm.pruning import PrunePlan
from upvit_mm.version import __version__

Folder = str | Path


def write_page(
    path: Folder,
    title: str,
    detectors: Sequence[Folder] = (),
    classifiers: Folder | None = None,
    consistency: Folder | None = None,
    pruning: Folder | None = None,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> Path:
    """Write one HTML page that needs nothing else, with a section for everything that is given.

    Args:
        path: of the page.
        title: its heading.
        detectors: work dirs of ``tools/compare_detectors.py``.
        classifiers: work dir of ``tools/compare_classifiers.py``.
        consistency: work dir of ``tools/compare_consistency.py``.
        pruning: work dir of ``tools/prune.py``.
        notes: paragraphs below the heading.
        commands: that came before those which the tools recorded.

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: a file that the tool should have left, or a picture of the test data, is missing.
        ValueError: a damaged file.
    """
    runs = read_runs(detectors)
    wanted = ((CLASSIFIERS, classifiers), (PRUNING, pruning), (CONSISTENCY, consistency))
    compared, report, contrast = (None if folder is None else source.read(folder) for source, folder in wanted)
    if not (runs or compared or report or contrast):
        raise ValueError('a page needs at least one folder of detectors, classifiers, consistency or pruning.')
    records = [record for record in (compared, report, *(r.content for r in runs), contrast) if record]
    recorded = [record['command'] for record in records if 'command' in record]
    values = {
        'title': title,
        'notes': notes,
        'runs': runs,
        'compared': compared,
        'report': report,
        'contrast': contrast,
        'commands': list(dict.fromkeys([*commands, *recorded])),
        'versions': _versions(),
        'hashes': _hashes(runs, compared, report, contrast),
    }
    values |= _sections(runs, compared, report, contrast)
    return write_text_atomically(path, _template().render(values))


def _sections(
    runs: Sequence[DetectorRuns], compared: Record | None, report: Record | None, contrast: Record | None
) -> dict[str, Any]:
    """Tables, charts and pictures."""
    values: dict[str, Any] = {
        'headline': headline(runs, compared) if runs else None,
        'detectors': [
            {
                'content': r.content,
                'title': r.title,
                'varies': what_varies(r.content),
                'charts': detector_charts(r, f'detector{k}'),
                'ap': ap_by_area(r),
                'costs': detector_costs(r),
            }
            for k, r in enumerate(runs)
        ],
        'detections': [detections(r) for r in runs],
    }
    if compared:
        values |= {'classifier_rows': classifier_rows(compared), 'classifier_charts': classifier_charts(compared)}
        values['classifier_differences'] = f'{how_differences(len(compared["options"]["seeds"]))} {ONE_DENSE}'
    if report:
        plan = PrunePlan.load(report['folder'] / 'plan.json')
        values |= {'widths': kept_widths(plan), 'costs': pruned_costs(report)}
    if contrast:
        tables = last_stages(contrast)
        values |= {'last_stages': tables, 'explained': explained(tables), 'pictures': _pictures(contrast)}
    return values


def _template() -> Template:
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters['count'] = EngFormatter(places=2)  # 4682096 -> 4.68 M
    return env.get_template('page.html')


def _pictures(contrast: Record) -> list[dict[str, Any]]:
    """Those that the comparison of consistency left, with what they show."""
    folder = contrast['folder']
    names = ', '.join(contrast.get('groups') or contrast['results'])
    sizes = ', '.join(next(iter(contrast['results'].values())))
    texts = {
        'contrast.png': f'Every measure by stage, one bar for each of {names}, at {sizes}',
        'queries.png': f'How alike one token of a picture is to all others at the last stage: dense, {names}',
    }
    if 'foretold' in contrast:
        told, best = contrast['foretold'], contrast['foretold']['rows'][0]
        texts['foretold.png'] = (
            f'{told["ap"]} against every measure at {told["size"]}, one dot for each network; ranks agree best for '
            f'{best["measure"]} {best["stage"]}, Spearman {best["spearman"]:.2f}'
        )
    return [{**picture_uri(folder / name), 'text': text} for name, text in texts.items() if (folder / name).is_file()]


def _versions() -> dict[str, str | None]:
    versions = {'python': platform.python_version(), 'upvit_mm': __version__}
    versions |= {name: metadata.version(name) for name in ('torch', 'timm')}
    return versions | {module: installed_version(module) for module in SUPPORTED}


def _hashes(
    runs: Sequence[DetectorRuns], compared: Record | None, report: Record | None, contrast: Record | None
) -> list[dict[str, str]]:
    """Every file that the records name with its SHA-256, once, from the dense network to the detectors."""
    files = [('dense classifier', record['checkpoint'], record['sha256']) for record in (compared, report) if record]
    for r in runs:
        for row in r.rows:
            if r.content['trained']:  # else it is the whole detector, and its run names it
                files.append((f'backbone {row["name"]}', row['checkpoint'], row['sha256']))
            for run in row['runs']:
                what = f'{r.title}, {row["name"]}' + ('' if run['seed'] is None else f', seed {run["seed"]}')
                files.append((what, run['checkpoint'], run['checkpoint_sha256']))
    networks = contrast.get('networks', {}) if contrast else {}
    files += [(name, network['checkpoint'], network.get('sha256')) for name, network in networks.items()]
    once: dict[str, dict[str, str]] = {}
    for what, file, sha256 in files:
        if sha256:
            once.setdefault(sha256, {'what': what, 'file': file, 'sha256': sha256})
    return list(once.values())
