"""The page of an experiment."""

from __future__ import annotations

import re

import pytest

from upvit_mm.evidence.charts import prediction_chart, study_charts
from upvit_mm.evidence.experiment import plans_of
from upvit_mm.evidence.page import write_page
from upvit_mm.evidence.results import Found, StudyFound, Variant
from upvit_mm.evidence.studies import studies_of

AP = {'dense': (40.0, 42.0, 41.0), 'up-50': (39.5, 41.0, 40.9), 'vanilla-50': (10.0, 14.0, 11.0)}
ABOUT = {'scale': 'cpu', 'machine': 'a CPU', 'command': 'python tools/evidence.py', 'minutes': {}, 'outdated': []}


@pytest.fixture
def study(tmp_path) -> StudyFound:
    plans = plans_of(studies_of(['bccd'], ['ViT-S']), (0, 1, 2), 'cpu', tmp_path)
    empty = StudyFound.of(plans)
    for seed, rows in empty.by_seed.items():
        for name, aps in AP.items():
            costs = {'macs': 6e9 if name == 'dense' else 3e9, 'params': 2e7}
            rows[name] = Found({'box AP': aps[seed]}, costs=costs, curve=[0.9, 0.5 + 0.1 * seed])
        rows['up-50'].one_shot['box AP'] = aps[seed] + 20
        rows['up-50'].consistency['cka'] = 0.9 + 0.01 * seed
        rows['random-50'].curve = [1.0, 1.0]  # still training: it has no score
    return empty


def test_the_page_has_every_section_that_has_figures(study, tmp_path):
    minutes = {'bccd/ViT-S/seed0/dense/train': 6.0}
    text = write_page(tmp_path, [study], [], ABOUT | {'minutes': minutes}).read_text()
    sections = re.findall(r'<h2 id="([^"]+)"', text)
    assert sections == ['result', 'bccd-vit-s', 'prediction', 'costs', 'reproduce']
    assert re.findall(r'<li><a href="#([^"]+)"', text) == sections
    assert 'established: above' in text
    assert 'python tools/evidence.py' in text
    assert not re.search(r'(src|href)="http', text)  # nothing is loaded from elsewhere
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert 'NaN' not in text
    assert 'are there, but not from' not in text
    text = write_page(tmp_path, [study], [], ABOUT | {'outdated': ['a/b/seed0/c/train']}).read_text()
    assert 'anew: a/b/seed0/c/train.' in text


def test_without_variants_and_minutes_their_sections_are_left_out(study, tmp_path):
    for rows in study.by_seed.values():
        rows['up-50'].consistency.clear()
        rows['up-50'].one_shot.clear()
    text = write_page(tmp_path, [study], [], ABOUT).read_text()
    assert re.findall(r'<h2 id="([^"]+)"', text) == ['result', 'bccd-vit-s', 'reproduce']


def test_charts_say_in_words_what_they_show(study):
    costs, at_once, differences, curves = study_charts(study, 'x')
    assert costs['text'] == (
        'box AP against MACs of the backbone: dense 41.0 % at 6.00 G; UP, half 40.5 % at 3.00 G; '
        'UP, half, at once 31.7 % at 3.00 G; vanilla 11.7 % at 3.00 G.'
    )
    assert differences['text'].startswith('Differences in box AP: UP, half minus dense -0.5 [-1.')
    assert at_once['text'].startswith('Differences in box AP at once: UP, half minus dense -9.3 [')
    assert curves['text'] == (
        "By epoch, loss of training, without the teacher's: dense, UP, half, vanilla, mean and range over seeds."
    )


def test_a_point_for_each_variant():
    found = [Variant('bccd/ViT-S', 'up-50', 0.9, 1.0), Variant('nuclei/ViT-S', 'up-50', 0.8, 0.95)]
    chart = prediction_chart(found, 'CKA', 'p')
    assert 'UP, half, bccd/ViT-S' in chart['svg']
    assert 'UP, half, nuclei/ViT-S' in chart['svg']
    assert '2 variants' in chart['text']


def test_pictures_that_are_gone_are_said(study, tmp_path):
    (plan,) = plans_of(studies_of(['bccd'], ['ViT-S']), (0,), 'cpu', tmp_path)
    row = plan.folder / 'evaluated0/dense'
    row.mkdir(parents=True)
    (row / 'predictions.json').write_text('[]')
    said = []
    text = write_page(tmp_path, [study], [plan], ABOUT, said.append).read_text()
    assert 'id="pictures"' not in text
    assert said == [
        f"no pictures of bccd/ViT-S: '{plan.folder}/evaluated0/detectors.json' does not exist; "
        'tools/compare_detectors.py writes it.'
    ]
