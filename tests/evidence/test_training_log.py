"""What trainings logged, over several starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from upvit_mm.evidence.training_log import last_value, losses


def log(folder: Path, start: str, *records: dict) -> None:
    path = folder / start / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def step(number: int, epoch: int, **values: float) -> dict:
    return {'loss': 9.0, 'lr': 0.1, 'epoch': epoch, 'iter': number, 'step': number, **values}


def test_the_detectors_own_loss_by_epoch(tmp_path):
    log(
        tmp_path,
        '20260101_000000',
        step(10, 1, loss_cls=0.6, loss_bbox=0.4, loss_tokens=5.0),
        step(20, 1, loss_cls=0.4, loss_bbox=0.2),
        step(30, 2, loss_cls=7.0, loss_bbox=7.0),  # stopped after that; the next start repeats it
    )
    log(
        tmp_path,
        '20260101_010000',
        step(30, 2, loss_cls=0.3, loss_bbox=0.1),
        step(40, 3, loss_cls=0.2, loss_bbox=0.1),
        {'coco/bbox_mAP': 0.31, 'step': 3},
    )
    assert losses(tmp_path) == pytest.approx([0.8, 0.4, 0.3])
    assert last_value(tmp_path, 'coco/bbox_mAP') == 0.31


def test_epochs_that_were_not_logged_are_unknown(tmp_path):
    log(tmp_path, '1', step(30, 3, loss_cls=0.5))
    assert losses(tmp_path) == [None, None, 0.5]
    assert losses(tmp_path / 'nothing') == []
    assert last_value(tmp_path, 'coco/bbox_mAP') is None


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    log(tmp_path, '1', step(10, 1, loss_cls=0.5))
    with (tmp_path / '1/vis_data/scalars.json').open('a') as file:
        file.write('{"loss_cls": 0.1, "epo')
    assert losses(tmp_path) == [0.5]
