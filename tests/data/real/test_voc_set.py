"""VOC folders become COCO files with sorted pictures: boxes, what is left out, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from upvit_mm.data.coco import examine
from upvit_mm.data.own_data import look_at_coco
from upvit_mm.data.real.voc_set import BCCD_CLASSES, write_bccd, write_voc

OBJECT = (
    '<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>'
    '<ymax>{}</ymax></bndbox></object></annotation>'
)
FIRST = 'BCCD/Annotations/BloodImage_00003.xml'


def add(xml: Path, name: str, *box: int) -> None:
    """One more object at the end of a file."""
    xml.write_text(xml.read_text().replace('</annotation>', OBJECT.format(name, *box)))


def test_bccd(blood, tmp_path, track):
    for box in ((50, 50, 50, 60), (40, 60, 30, 70), (200, 20, 230, 40)):  # no width, negative, outside of 160 x 120
        add(blood / FIRST, 'RBC', *box)
    add(blood / FIRST, 'artefact', 1, 1, 20, 20)
    out = tmp_path / 'out'
    counts = write_bccd(blood, out, track)
    assert {part: (found.pictures, found.objects) for part, found in counts.items()} == {
        'train': (5, 88),
        'val': (2, 37),
    }
    assert counts['train'].left_out == {'boxes without width or height': 3, 'of other classes': 1}
    assert counts['val'].left_out == {'boxes without width or height': 0, 'of other classes': 0}
    path = out / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    assert content['images'][0] == {'id': 1, 'file_name': 'BloodImage_00003.jpg', 'width': 160, 'height': 120}
    # WBC of 32, 10 to 86, 57, counted from 1, both ends included
    expected = {'id': 1, 'image_id': 1, 'category_id': 2, 'bbox': [31, 9, 55, 48], 'area': 2640, 'iscrowd': 0}
    assert content['annotations'][0] == expected
    assert [row['id'] for row in content['annotations']] == list(range(1, 89))
    examine(path).check(('any', 'train', 'judge'))
    copy, source = out / 'images/train/BloodImage_00003.jpg', blood / 'BCCD/JPEGImages/BloodImage_00003.jpg'
    assert copy.read_bytes() == source.read_bytes()
    data = look_at_coco(out)  # what tools/init.py finds
    assert data.classes == BCCD_CLASSES
    assert (data.train.settings['data_prefix'], data.val.pictures) == ({'img': 'images/train/'}, 2)


def test_own_voc_data_with_a_test_list(blood, tmp_path, track):
    lists = blood / 'BCCD/ImageSets/Main'
    names = (lists / 'train.txt').read_text().split()
    (lists / 'train.txt').write_text('\n'.join(names[1:]))
    (lists / 'test.txt').write_text(names[0])
    counts = write_voc(blood, tmp_path / 'out', track)
    assert {part: found.pictures for part, found in counts.items()} == {'train': 4, 'val': 2, 'test': 1}
    assert list(counts['test'].classes) == ['Platelets', 'RBC', 'WBC']
    some = write_voc(blood, tmp_path / 'some', track, classes=['WBC'])
    assert some['train'].objects == counts['train'].classes['WBC']
    assert some['train'].left_out['of other classes'] == counts['train'].objects - some['train'].objects


def test_mistakes(blood, tmp_path, track):
    def refused(text: str, source: Path = blood, **options) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=text):
            write_voc(source, tmp_path / 'out', track, **options)
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)

    refused('has no VOC data: must be a folder with Annotations/.*; found no such folder', tmp_path / 'no')
    refused('has no VOC data: .*; found BloodImage_00003.jpg', blood / 'BCCD/JPEGImages')
    refused('classes = RBC, cat: no object of .* is cat; there are Platelets, RBC, WBC', classes=['RBC', 'cat'])
    refused('name 5 pictures more than once: .*Each picture must be in one part', val='train.txt')
    refused("train = 'x.txt': must be one of the lists in .*: train.txt, val.txt", train='x.txt')
    xml = blood / FIRST
    whole = xml.read_text()
    add(xml, 'rbc', 1, 1, 20, 20)
    refused("classes 'rbc' and 'RBC' differ only in case or blanks")
    xml.write_text(whole.replace('<width>160</width>', '<width>640</width>'))
    refused('1 of 5 pictures have another size .*00003.jpg has 160x120 pixels, its XML file says 640x120')
    xml.unlink()
    refused("1 of 5 pictures are not in .*BloodImage_00003.xml'")
    xml.write_text(whole)
    picture = blood / 'BCCD/JPEGImages/BloodImage_00003.jpg'
    picture.write_bytes(picture.read_bytes()[:2000])
    refused('BloodImage_00003.jpg. cannot be read')
    Image.new('RGB', (8, 8)).save(picture)
    picture.unlink()
    refused('has no picture BloodImage_00003')
