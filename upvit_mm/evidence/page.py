"""The page of an experiment: one self-contained HTML file, and the pictures of detections as files for documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from upvit_mm.compare.page.detections import detections, first_pictures
from upvit_mm.compare.page.frame import page_template, versions
from upvit_mm.compare.page.sources import DetectorRuns
from upvit_mm.compare.pictures import Sheet
from upvit_mm.consistency.metrics import METRICS
from upvit_mm.evidence.charts import prediction_chart, study_charts
from upvit_mm.evidence.report import (
    HOW,
    OUTDATED,
    PREDICTS_HOW,
    correlation_table,
    costs_of,
    differences_table,
    headline,
    minutes_table,
    rows_table,
    sentences,
    title_of,
    variants_by_study,
)
from upvit_mm.evidence.results import AT_ONCE, StudyFound
from upvit_mm.evidence.steps import Plan
from upvit_mm.evidence.studies import SHORT
from upvit_mm.files import write_atomically, write_text_atomically
from upvit_mm.workflow.record import Say

HERE = Path(__file__).parent
SHOWN = ('dense', 'up-50', 'dropping-50', 'vanilla-50')  # above pictures
PREDICTORS = ('cka', AT_ONCE)  # with a chart


def write_page(
    folder: Path, studies: Sequence[StudyFound], plans: Sequence[Plan], about: dict[str, Any], say: Say = print
) -> Path:
    """Write ``evidence.html``, and ``DATA_FAMILY.jpg`` for each detector that was evaluated.

    Args:
        folder: the work dir of the experiment.
        studies: the figures; each has some.
        plans: the plans of the studies, which know where detections are.
        about: scale, machine, command, minutes, and names of outdated steps.
        say: told why there are no pictures of a study, if its data or detections are gone.
    """
    sheets = dict(_sheets(plans, say))
    for name, sheet in sheets.items():
        figure = sheet.draw()
        path = folder / f'{name.replace("/", "_")}.jpg'
        write_atomically(path, lambda part, figure=figure: figure.savefig(part, format='jpg', dpi=100))
    sections = [_study(study) for study in studies]
    values = {
        'title': 'Pruned detectors on real photographs',
        'notes': [
            'Does a pruned detector keep its AP on real pictures, and more of it than its rivals at equal costs?'
        ],
        'how': HOW,
        'headline': headline(studies),
        'studies': sections,
        'studies_there': [(section['id'], section['title'], True) for section in sections],
        'prediction': correlation_table(studies),
        'prediction_how': PREDICTS_HOW,
        'prediction_charts': [
            prediction_chart(found, METRICS.get(measure, measure), f'prediction{k}')
            for k, measure in enumerate(PREDICTORS)
            if (found := variants_by_study(studies, measure)['all'])
        ],
        'sheets': [detections(sheet) for sheet in sheets.values()],
        'minutes': minutes_table(about['minutes']),
        'outdated': OUTDATED.format(', '.join(about['outdated'])) if about['outdated'] else '',
        'versions': versions(),
        **{key: about[key] for key in ('scale', 'machine', 'command')},
    }
    return write_text_atomically(folder / 'evidence.html', page_template('page.html', HERE).render(values))


def _study(study: StudyFound) -> dict[str, Any]:
    name = study.study.name.replace('/', '-').lower()
    return {
        'id': name,
        'title': title_of(study),
        'about': f'Config real/{study.study.config}.py; seeds {", ".join(map(str, study.seeds))}.',
        'costs_of': costs_of(study),
        'rows': rows_table(study),
        'differences': differences_table(study),
        'sentences': sentences(study),
        'charts': study_charts(study, name),
    }


def _sheets(plans: Sequence[Plan], say: Say) -> Iterator[tuple[str, Sheet]]:
    """The first pictures of each study on detectors, with the first seed that was evaluated, by the study's name."""
    done: set[str] = set()
    for plan in plans:
        folder = plan.folder / 'evaluated0'
        if plan.study.name in done or not list(folder.glob('*/predictions.json')):
            continue
        try:
            runs = DetectorRuns(folder)
            rows = [row.name for row in runs.table.rows]
            runs.title = f'{runs.title} on {plan.study.name}, seed {plan.seed}'
            yield plan.study.name, first_pictures(runs, {name: SHORT[name] for name in SHOWN if name in rows})
        except FileNotFoundError as error:
            say(f'no pictures of {plan.study.name}: {error}')
        done.add(plan.study.name)
