"""Which goals a report meets."""

from __future__ import annotations

import pytest

from upvit_mm.benchmark.gpu.goals import GOALS, Goal, Place, judged

OURS, TIMM = Place('forward', 'net', 'ours', 8), Place('forward', 'net', 'timm', 8)


def row(variant: str, median: float, peak: int | None = None) -> dict:
    labels = {'work': 'forward', 'network': 'net', 'variant': variant, 'batch': 8, 'precision': 'bf16'}
    return labels | {'seconds': {'median': median}, 'images_per_second': 8 / median, 'peak_bytes': peak}


@pytest.mark.parametrize(
    ('goal', 'limit', 'measured', 'met'),
    [
        (Goal('ratio', 0.65, OURS, TIMM), 'at most 0.65x', 0.6, True),
        (Goal('ratio', 0.55, OURS, TIMM), 'at most 0.55x', 0.6, False),
        (Goal('ratio', 1.6, TIMM, OURS, at_least=True), 'at least 1.6x', 1 / 0.6, True),
        (Goal('rate', 30, OURS, figure='images_per_second', at_least=True), 'at least 30', 26.67, False),
        (Goal('memory', 1.0, OURS, TIMM, 'peak_bytes'), 'at most 1x', None, None),  # timm's was not measured
        (Goal('other', 1.0, OURS, Place('training', 'net', 'timm', 8)), 'at most 1x', None, None),
    ],
)
def test_a_goal(goal, limit, measured, met):
    (found,) = judged([{'work': 'tests', 'passed': 3}, row('ours', 0.3, peak=7), row('timm', 0.5)], [goal])
    expected = None if measured is None else pytest.approx(measured, rel=1e-3)
    assert found == {'text': goal.text, 'limit': limit, 'measured': expected, 'met': met}


def test_goals_name_rows_of_the_full_report():
    """Of its networks, batches and precisions."""
    from upvit_mm.benchmark.gpu.setting import FULL

    detectors = {f'{kind} {name}' for kind in ('RetinaNet', 'MaskRCNN') for name in (*FULL.pyramids, FULL.plain)}
    for place in (place for goal in GOALS for place in (goal.row, goal.over) if place):
        batches = {'forward': FULL.forward_batches, 'training': (FULL.training_batch,)}
        assert place.network in detectors | {*FULL.pyramids, FULL.plain}
        assert place.batch in batches.get(place.work, dict(FULL.detectors).values())
    assert len(GOALS) == 11
