"""Categories of annotation files, and files rewritten to have those of another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from upvit_mm.data.categories import match_categories
from upvit_mm.data.coco import examine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    """``write(name, categories)``: an annotation file of these ``(id, name)``, with one object of each."""

    def to_file(name: str, *categories) -> Path:
        content = dict(
            info='kept',
            images=[dict(id=1, file_name='smörgås.png', width=9, height=9)],
            annotations=[
                dict(id=k, image_id=1, category_id=number, bbox=[k, 0, 5, 5], area=25)
                for k, (number, _) in enumerate(categories, 1)
            ],
            categories=[dict(id=number, name=label, supercategory='x') for number, label in categories],
        )
        (tmp_path / name).write_text(json.dumps(content), encoding='utf-8')
        return tmp_path / name

    return to_file


def test_order_missing_ones_and_others(write, tmp_path):
    like = write('train.json', (1, 'apple'), (2, 'pear'), (3, 'plum'), (4, 'quince'))
    path = write('val.json', (2, 'plum'), (9, 'kiwi'), (1, 'apple'))
    before = json.loads(path.read_text())
    matched = match_categories(path, like)
    assert matched.path == tmp_path / 'val_matched.json'
    assert (matched.names, matched.renamed) == (['apple', 'pear', 'plum', 'quince', 'kiwi'], {})
    assert (matched.added, matched.more) == (['pear', 'quince'], ['kiwi'])
    content = json.loads(matched.path.read_text(encoding='utf-8'))
    # ids stay; that of pear is taken by plum here, so it gets a new one; quince keeps its own
    ids = [(category['id'], category['name']) for category in content['categories']]
    assert ids == [(1, 'apple'), (10, 'pear'), (2, 'plum'), (4, 'quince'), (9, 'kiwi')]
    assert {key: value for key, value in content.items() if key != 'categories'} == {
        key: value for key, value in before.items() if key != 'categories'
    }
    assert json.loads(path.read_text()) == before
    again = match_categories(matched.path, like, tmp_path / 'again.json')
    assert (again.added, json.loads(again.path.read_text())['categories']) == ([], content['categories'])


def test_ids_that_are_text_stay_text(write):
    like = write('train.json', (1, 'apple'), (2, 'pear'))
    matched = match_categories(write('val.json', ('1', 'apple')), like)
    assert examine(matched.path).categories == (('1', 'apple'), ('2', 'pear'))


def test_names_that_look_alike(write):
    like = write('train.json', (1, 'apple'), (2, 'café'))
    matched = match_categories(write('val.json', (1, 'cafe\u0301 '), (2, 'Apple')), like)
    assert matched.renamed == {'cafe\u0301 ': 'café', 'Apple': 'apple'}
    assert examine(matched.path).categories == ((2, 'apple'), (1, 'café'))
    both = match_categories(write('both.json', (1, 'Apple'), (2, 'apple')), like)
    assert (both.renamed, both.names) == ({}, ['apple', 'café', 'Apple'])
    with pytest.raises(ValueError, match='Apple, APPLE could be one category'):
        match_categories(write('two.json', (1, 'Apple'), (2, 'APPLE')), like)


def test_files_that_cannot_be_matched(write, tmp_path):
    good, twice = write('train.json', (1, 'apple')), write('twice.json', (1, 'apple'), (2, 'apple'))
    with pytest.raises(ValueError, match=r"twice.json' has two categories of one name"):
        match_categories(good, twice)
    with pytest.raises(FileNotFoundError, match=r"none.json' does not exist"):
        match_categories(good, tmp_path / 'none.json')
    (tmp_path / 'half.json').write_text('{"images": [')
    with pytest.raises(ValueError, match=r"half.json' is no whole COCO file"):
        match_categories(tmp_path / 'half.json', good)
    assert not (tmp_path / 'half_matched.json').exists()


def test_the_tool(write, tmp_path):
    like, path = write('train.json', (1, 'apple'), (2, 'pear')), write('val.json', (1, 'kiwi'), (2, 'Apple'))
    command = [sys.executable, 'tools/match_categories.py', str(path), '--like', str(like), '--out', str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [
            f'{path}: 3 categories: apple, pear, kiwi',
            "'Apple' is now 'apple'",
            'added, without objects: pear',
            'only in this file, now last: kiwi',
        ],
    )
    assert examine(path).categories == ((2, 'apple'), (3, 'pear'), (1, 'kiwi'))
    done = subprocess.run([*command[:2], 'no.json', *command[3:]], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: annotation file 'no.json' does not exist; check the path.\n")
