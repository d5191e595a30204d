"""A whole report in the small setting, and what becomes of parts that fail or take too long."""

from __future__ import annotations

import json

import pytest

from upvit_mm.benchmark.gpu.page import page_of
from upvit_mm.benchmark.gpu.parts import PARTS, TIME_LIMIT, Part
from upvit_mm.benchmark.gpu.report import make_report

LATE, BROKEN = Part('late', 0, 'suite:run_tests'), Part('broken', 60, 'suite:nothing')


@pytest.fixture(scope='module')
def report(tmp_path_factory) -> tuple[dict, str]:
    """The record of all parts and of two that do not end well, and the page."""
    folder, said = tmp_path_factory.mktemp('gpu'), []
    record = make_report(folder, 'small', 'cpu', 4 * TIME_LIMIT, [LATE, BROKEN, *PARTS], said.append)
    assert json.loads((folder / 'report.json').read_text()) == record
    assert said[0] == 'late: at most 0 s'
    assert len(said) == 2 * len(record['parts'])
    return record, (folder / 'report.md').read_text()


def test_what_does_not_end_well_is_said_and_the_rest_goes_on(report):
    late, broken, *others = report[0]['parts']
    assert (late['status'], late['error'], late['rows']) == ('out of time', 'stopped after 0 s', [])
    assert broken['status'] == 'failed'
    assert broken['error'].startswith('AttributeError: ')
    assert {part['name']: (part['status'], part['error'], part['notes']) for part in others} == {
        part.name: ('done', None, []) for part in PARTS
    }


def test_rows(report):
    rows = [row for part in report[0]['parts'] for row in part['rows']]
    timed = [row for row in rows if 'variant' in row]
    assert sorted({row['variant'] for row in timed if row['network'] == 'tiny-pvtv2'}) == [
        'dense', 'half the MACs', 'mmdet', 'ours', 'ours compiled', 'ours plain', 'timm', 'timm channels-last',
        'timm compiled',
    ]  # fmt: skip
    assert sorted({row['variant'] for row in timed if row['network'] == 'tiny-deit'}) == [
        'dense', 'half the MACs', 'ours', 'ours plain', 'ours windows', 'timm', 'timm channels-last'
    ]  # fmt: skip
    assert {row['network']: row['variant'] for row in timed if row['work'] == 'detector training'} == {
        'RetinaNet pvtv2-micro': 'mmdet',
        'MaskRCNN deit-micro': 'ours',
    }
    assert all(row['images_per_second'] == pytest.approx(row['batch'] / row['seconds']['median']) for row in timed)
    (tests,) = (row for row in rows if row['work'] == 'tests')
    assert tests['passed'] > 0 == tests['failed']


def test_page(report):
    record, page = report
    assert page == page_of(record)
    lines = page.splitlines()
    assert '- broken: AttributeError: ' in page
    assert '|  | ours | timm | mmdet | ours plain | timm channels-last |' in lines
    assert (
        sum(line.startswith('| tiny-pvtv2 forward, 2 images, bf16 | ') for line in lines) == 3
    )  # eager, compiled, half
    assert lines.count('| pvtv2-b0 forward, 8 images: ours over timm | at most 0.65x |  | not measured |') == 1
    assert lines[-1] == 'The goals are for one H100. This is another device.'


def test_limits(tmp_path):
    assert TIME_LIMIT == 480  # seconds
    with pytest.raises(ValueError, match='time_limit = 0: must be above 0, in seconds'):
        make_report(tmp_path, 'small', 'cpu', 0)
