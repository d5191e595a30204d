"""What is remembered of an annotation file, and what is said of it."""

from __future__ import annotations

import json
import os

import pytest

from upvit_mm.data.coco import examine, file


def test_a_file_is_read_once(good, write, monkeypatch, tmp_path):
    content, _ = good()
    content['annotations'][0]['category_id'] = 7
    path = write(content)
    first = examine(path)
    monkeypatch.setattr(file, '_read', None)
    assert examine(path) == first
    assert [fault.use for fault in first.faults] == ['any']
    state = path.stat()
    for change in (
        lambda: os.utime(path, ns=(0, state.st_mtime_ns + 1)),
        lambda: path.write_text(json.dumps(content) + ' '),
    ):
        change()
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            examine(path)
    monkeypatch.undo()
    monkeypatch.setenv('UPVIT_MM_CACHE', str(tmp_path / 'memory'))
    assert examine(path) == first
    (memory,) = (tmp_path / 'memory/annotations').iterdir()
    memory.write_text('{"key": ')  # spoiled
    assert examine(path) == first


def test_a_disk_without_room_for_the_memory(good, write, monkeypatch, caplog, tmp_path):
    (tmp_path / 'occupied').touch()
    monkeypatch.setenv('UPVIT_MM_CACHE', str(tmp_path / 'occupied'))
    content, _ = good()
    assert examine(write(content)).faults == ()
    assert 'cannot be cached' in caplog.text


def test_the_summary_counts_what_mmdet_leaves_out_by_design(good, write, read_by_mmdet):
    content, folder = good()
    content['categories'].append(dict(id=3, name='plum'))
    rows = content['annotations']
    rows[0]['iscrowd'] = 1
    rows[1].update(bbox=[9.0, 9.0, 0.5, 9.0], area=4.5)
    rows[2].update(bbox=[9.0, 9.0, 9.0, 0.9], area=8.1)
    rows[3]['category_id'] = 3
    rows[4]['ignore'] = 1
    content['images'] += [
        dict(id=7, file_name='0007.png', width=96, height=64),
        dict(id=8, file_name='0008.png', width=20, height=96),
    ]
    path = write(content)
    found = examine(path)
    assert found.summary(('apple', 'pear'), dict(filter_empty_gt=True, min_size=32)) == (
        f'{path}: 8 images, 12 objects; 1 objects are left out because they are marked with ignore; 2 objects are left '
        'out because they are smaller than a pixel; 1 objects are left out because they are of categories that the '
        'config does not list; 1 objects are crowds, which mmdet ignores; 2 pictures are left out because they have no '
        'object; 1 pictures are left out because a side is below 32 pixels'
    )
    counts = read_by_mmdet(path, folder)
    assert counts['apple'] + counts['pear'] == 12 - 1 - 2 - 1 - 1


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'annotation file .*none.json. does not exist; check data_root'):
        examine(tmp_path / 'none.json')


def test_a_word_that_stands_twice(good, write):
    """Annotation tools append statistics, in which 'categories' is the last word but not the list."""
    content, _ = good()
    content['statistics'] = {'categories': {'apple': 6, 'pear': 6}}
    assert examine(write(content)).categories == ((1, 'apple'), (2, 'pear'))
    content['categories'][0]['name'] = 'dög'
    assert examine(write(json.dumps(content, indent=1, ensure_ascii=False).encode())).categories[0] == (1, 'dög')
