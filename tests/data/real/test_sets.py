"""A set is written completely or not at all, and only once."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from upvit_mm.data.real.sets import prepare_set

ROOT = Path(__file__).parents[3]


def test_a_finished_set_is_not_written_again(blood, tmp_path, track):
    out = tmp_path / 'data/bccd'
    first = prepare_set('bccd', blood, out, track)
    assert (first.written, first.parts['train'].objects) == (True, 88)
    manifest = json.loads((out / 'dataset.json').read_text())
    assert (manifest['data'], manifest['source'], manifest['parts']['val']['objects']) == ('bccd', str(blood), 37)
    (out / 'mine').touch()
    again = prepare_set('bccd', blood, out, track)
    assert (again.written, again.parts) == (False, first.parts)
    assert (out / 'mine').exists()
    assert prepare_set('bccd', blood, out, track, overwrite=True).written
    assert not (out / 'mine').exists()


def test_what_stands_in_the_way_is_not_changed(blood, tmp_path, track):
    out = tmp_path / 'data'
    prepare_set('voc', blood, out, track)
    with pytest.raises(
        ValueError, match=r"holds voc with no options, not voc with \{'classes': \['WBC'\]\}; name another"
    ):
        prepare_set('voc', blood, out, track, {'classes': ['WBC'], 'val': None})
    with pytest.raises(ValueError, match='holds voc with no options, not bccd'):
        prepare_set('bccd', blood, out, track, overwrite=True)
    assert prepare_set('voc', blood, out, track, {'classes': ['WBC']}, overwrite=True).parts['train'].objects == 5
    for full in (blood, blood / 'BCCD/ImageSets/Main/train.txt'):
        with pytest.raises(ValueError, match=r'is not a bccd data set .*so nothing in it is changed'):
            prepare_set('bccd', blood, full, track, overwrite=True)


def test_an_error_leaves_nothing_behind(blood, tmp_path, track):
    (blood / 'BCCD/JPEGImages/BloodImage_00017.jpg').write_bytes(b'no picture')  # the last one
    with pytest.raises(ValueError, match='cannot be read'):
        prepare_set('bccd', blood, tmp_path / 'data/bccd', track)
    assert list((tmp_path / 'data').iterdir()) == []


def test_the_tool_prints_a_table(blood, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'out'
    monkeypatch.setenv('COLUMNS', '120')
    words = ['prepare_data.py', 'voc', str(blood), '--out', str(out), '--classes', 'WBC', 'RBC']
    for said in (f'{out}: written', f'{out}: already there, made from {blood}; --overwrite writes it again'):
        monkeypatch.setattr(sys, 'argv', words)
        runpy.run_path(str(ROOT / 'tools/prepare_data.py'), run_name='__main__')
        text = capsys.readouterr().out
        assert said in text.replace('\n', '')
        row = next(line for line in text.splitlines() if 'train' in line and '│' in line)
        cells = [cell.strip() for cell in row.strip('│').split('│')]
        assert cells[:2] == ['train', '5']
        assert cells[4].endswith('of other classes')
    words[1] = 'nuclei'
    monkeypatch.setattr(sys, 'argv', [*words[:3], '--out', str(tmp_path / 'no')])
    with pytest.raises(SystemExit, match=f"error: source '{blood}' has no nuclei"):
        runpy.run_path(str(ROOT / 'tools/prepare_data.py'), run_name='__main__')
