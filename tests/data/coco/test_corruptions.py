"""Every corruption of a good annotation file is refused by name, or mmdet reads what is in the file all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from upvit_mm.data.coco import USES, examine

Content = dict[str, Any]


def each(key: str, change: Callable[[Content], Any]) -> Callable[[Content], None]:
    """Carry out a change in every entry of a list."""

    def corrupt(content: Content) -> None:
        for entry in content[key]:
            change(entry)

    return corrupt


def objects(**values: Any) -> Callable[[Content], None]:
    """Set values in every object; a callable gets the object."""
    return each('annotations', lambda a: a.update({k: v(a) if callable(v) else v for k, v in values.items()}))


def first(key: str, **values: Any) -> Callable[[Content], None]:
    return lambda content: content[key][0].update(values)


def without(key: str, field: str) -> Callable[[Content], None]:
    return each(key, lambda entry: entry.pop(field))


def images_from_text(content: Content) -> None:
    each('images', lambda i: i.update(id=str(i['id'])))(content)
    objects(image_id=lambda a: str(a['image_id']))(content)


def categories_from(start: int) -> Callable[[Content], None]:
    def corrupt(content: Content) -> None:
        each('categories', lambda c: c.update(id=c['id'] - 1 + start))(content)
        objects(category_id=lambda a: a['category_id'] - 1 + start)(content)

    return corrupt


def many(count: int, change: Callable[[Content], None]) -> Callable[[Content], None]:
    """Only some objects are changed, of a file with 240."""

    def corrupt(content: Content) -> None:
        rows = content['annotations']
        for k in range(len(rows), 240):
            x, y, w, h = 1.0 + k / 10, 2.0, 20.0, 9.0
            mask = [[x, y, x + w, y, x + w, y + h]]
            rows.append({**rows[k % 12], 'id': k + 1, 'bbox': [x, y, w, h], 'area': w * h, 'segmentation': mask})
        for row in rows[-count:]:
            change(row)

    return corrupt


def centres(a: Content) -> list[float]:
    x, y, w, h = a['bbox']
    return [x + w / 2, y + h / 2, w, h]


def corners(a: Content) -> list[float]:
    x, y, w, h = a['bbox']
    return [x, y, x + w, y + h]


def boxes_only(change: Callable[[Content], Any]) -> Callable[[Content], None]:
    def corrupt(content: Content) -> None:
        without('annotations', 'segmentation')(content)
        objects(bbox=change)(content)

    return corrupt


REFUSED = {  # name -> corruption, what the file is for, words of the error
    'no area': (without('annotations', 'area'), 'train', r"12 of 12 objects lack 'area' \(id 1, id 2, id 3\)"),
    'no bbox': (without('annotations', 'bbox'), 'train', "12 of 12 objects lack 'bbox'.*its tight box"),
    'no iscrowd': (without('annotations', 'iscrowd'), 'judge', "12 of 12 objects lack 'iscrowd'.*Write iscrowd = 0"),
    'no width': (without('images', 'width'), 'train', "6 of 6 images lack 'width'.*Write the picture's size"),
    'no file name': (without('images', 'file_name'), 'train', "6 of 6 images lack 'file_name'"),
    'no category name': (without('categories', 'name'), 'train', "2 of 2 categories lack 'name'"),
    'no ids of objects': (without('annotations', 'id'), 'train', "lack 'id' .none of them has an id"),
    'no masks': (
        without('annotations', 'segmentation'),
        'masks',
        "12 of 12 objects lack 'segmentation'.*without with_mask=True",
    ),
    'empty masks': (objects(segmentation=[]), 'masks', "12 of 12 objects lack 'segmentation'"),
    'flat polygons': (objects(segmentation=[1, 2, 3, 4, 5, 6]), 'masks', 'a polygon is not a list of numbers'),
    'masks of two points': (objects(segmentation=[[1, 2, 3, 4]]), 'masks', '12 of 12 masks would be ignored.*4 num'),
    'RLE turned': (
        objects(segmentation={'size': [96, 64], 'counts': [0, 6144]}),
        'masks',
        r'RLE of size \[96, 64\] in a picture of height 64 and width 96',
    ),
    'masks as a path': (objects(segmentation='a.png'), 'masks', 'neither polygons nor RLE'),
    'masks in shares': (
        objects(segmentation=[[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]),
        'train',
        'masks .* do not fit their box',
    ),
    'masks as y, x': (
        objects(segmentation=lambda a: [[a['segmentation'][0][k ^ 1] for k in range(8)]]),
        'train',
        'of 12 masks that were checked do not fit their box',
    ),
    'category ids from 0': (
        objects(category_id=lambda a: a['category_id'] - 1),
        'train',
        r'6 of 12 objects have a category_id that is none.*\(0; there are 1 apple, 2 pear\).*Add 1 to each',
    ),
    'category ids from 1': (
        each('categories', lambda c: c.update(id=c['id'] - 1)),
        'train',
        r'\(2; there are 0 apple, 1 pear\).*Subtract 1 from each category_id',
    ),
    'category ids as text': (objects(category_id=lambda a: str(a['category_id'])), 'train', 'write category_id as num'),
    'category unknown': (
        first('annotations', category_id=7),
        'train',
        '1 of 12 objects .* Add the category, or remove',
    ),
    'image ids as text': (objects(image_id=lambda a: str(a['image_id'])), 'train', 'write image_id as numbers'),
    'image unknown': (first('annotations', image_id=77), 'train', r'1 of 12 objects have an image_id .*\(77\)'),
    'ids of mixed types': (first('images', id='1'), 'train', 'some ids of images are numbers and some are text'),
    'image ids twice': (first('images', id=2), 'train', r'1 ids of images occur twice \(2\)'),
    'object ids twice': (objects(id=1), 'train', r'1 ids of objects occur twice \(1\)'),
    'category ids twice': (first('categories', id=2), 'train', '1 ids of categories occur twice'),
    'category names twice': (first('categories', name='pear'), 'train', "1 categories have the name of another .'pear"),
    'object id 0': (objects(id=lambda a: a['id'] - 1), 'judge', 'has the id 0, .* count as a miss'),
    'object ids as text': (objects(id=lambda a: f'a{a["id"]}'), 'judge', '12 ids of objects are text'),
    'no id': (first('annotations', id=None), 'train', "1 of 12 objects have a wrong 'id'"),
    'boxes as text': (
        objects(bbox=lambda a: [str(v) for v in a['bbox']]),
        'train',
        "wrong 'bbox' .*four finite numbers",
    ),
    'boxes of three': (first('annotations', bbox=[1, 2, 3]), 'train', r"1 of 12 .* 'bbox' \(id 1: \[1, 2, 3\]\)"),
    'boxes that are none': (first('annotations', bbox=None), 'train', "wrong 'bbox' .id 1: None"),
    'boxes not finite': (first('annotations', bbox=[1.0, 2.0, float('nan'), 4.0]), 'train', "wrong 'bbox'.*nan"),
    'boxes as shares': (
        boxes_only(lambda a: [a['bbox'][0] / 96, a['bbox'][1] / 64, a['bbox'][2] / 96, a['bbox'][3] / 64]),
        'train',
        '12 of 12 objects have boxes in relative coordinates',
    ),
    'boxes as corners': (boxes_only(corners), 'train', r'boxes look like corners \[x1, y1, x2, y2\]: \d+ of 12'),
    'boxes as corners, with masks': (objects(bbox=corners), 'train', 'boxes look like corners|do not fit their box'),
    'boxes as centres': (boxes_only(centres), 'train', r'boxes look like centres \[cx, cy, w, h\]'),
    'boxes as centres, with masks': (objects(bbox=centres), 'train', 'do not fit their box'),
    'boxes without width': (objects(bbox=lambda a: [*a['bbox'][:2], 0.0, 9.0]), 'train', '12 without width or height'),
    'boxes of negative height': (first('annotations', bbox=[9.0, 9.0, 9.0, -4.0]), 'train', '1 of 12 objects would be'),
    'boxes outside': (objects(bbox=lambda a: [500.0, 9.0, 9.0, 9.0]), 'train', '12 outside of the picture'),
    'boxes of another scale': (
        boxes_only(lambda a: [2.5 * v for v in a['bbox']]),
        'train',
        'partly outside their picture',
    ),
    'areas of 0': (objects(area=0), 'train', 'would be lost: boxes 12 of area 0'),
    'areas as text': (first('annotations', area='9'), 'train', "1 of 12 objects have a wrong 'area' .id 1: '9'"),
    'iscrowd as text': (
        objects(iscrowd='0'),
        'train',
        "12 of 12 objects have iscrowd = '0': .* makes mmdet ignore them",
    ),
    'all crowds': (objects(iscrowd=1), 'train', 'all 12 objects are crowds'),
    'ignore as text': (objects(ignore='false'), 'train', "have ignore = 'false'"),
    'all ignored': (objects(ignore=1), 'train', 'mmdet finds no object in it .12 marked with ignore'),
    'no objects': (lambda c: c.update(annotations=[]), 'train', 'mmdet finds no object in it .it lists none'),
    'nothing to judge by': (
        lambda c: c.pop('annotations'),
        'judge',
        'it lists no objects, so nothing can be',
    ),
    'no images': (lambda c: c.update(images=[]), 'train', "'images' is empty"),
    'images as a dict': (lambda c: c.update(images={}), 'train', "'images' is missing or no list"),
    'images as names': (lambda c: c.update(images=['a.png']), 'train', '1 of 1 images are no JSON objects'),
    'no categories': (lambda c: c.pop('categories'), 'train', "'categories' is missing or no list"),
    'width as text': (first('images', width='96'), 'train', "1 of 6 images have a wrong 'width' .id 1: '96'"),
    'height of 0': (first('images', height=0), 'train', "wrong 'height'"),
    'back-slashes': (
        each('images', lambda i: i.update(file_name=f'a\\{i["file_name"]}')),
        'train',
        '6 of 6 file names',
    ),
    'pictures twice': (
        first('images', file_name='0001.png'),
        'train',
        "1 pictures are listed under several ids .'0001",
    ),
    'objects twice': (
        lambda c: c['annotations'].extend([{**a, 'id': a['id'] + 12} for a in c['annotations']]),
        'train',
        '12 of 24 objects are copies',
    ),
}
HARMLESS = {
    'statistics after the categories': lambda c: c.update(statistics={'categories': {'apple': 6}}),
    'no supercategory, info or licences': lambda c: None,
    'objects before images': lambda c: c.update(images=c.pop('images')),
    'float ids': lambda c: (
        each('images', lambda i: i.update(id=float(i['id'])))(c),
        objects(category_id=lambda a: float(a['category_id'])),
    ),
    'text ids of images on both sides': images_from_text,
    'category ids from 0 on both sides': categories_from(0),
    'category ids with gaps': categories_from(40),
    'sizes as 96.0': each('images', lambda i: i.update(width=96.0, height=64.0)),
    'whole numbers in boxes': objects(bbox=lambda a: [int(v) for v in a['bbox']]),
    'iscrowd as false': objects(iscrowd=False),
    'an image without objects': lambda c: c.update(
        annotations=[a for a in c['annotations'] if a['image_id'] != 3], images=[i for i in c['images'] if i['id'] != 3]
    ),
    'objects in any order': lambda c: c['annotations'].reverse(),
    'more keys': objects(score=0.5, attributes={'occluded': True}),
}


def test_there_are_about_forty():
    assert len(REFUSED) >= 40


@pytest.mark.parametrize('name', REFUSED)
def test_refused_by_name(good, write, name):
    corrupt, use, words = REFUSED[name]
    content, _ = good()
    corrupt(content)
    with pytest.raises(ValueError, match=rf'annotation file .*annotations\.json.*{words}'):
        examine(write(content)).check((use,))


@pytest.mark.parametrize('name', HARMLESS)
def test_harmless_as_mmdet_reads_it(good, write, read_by_mmdet, judged_by_mmdet, name):
    content, folder = good()
    HARMLESS[name](content)
    path = write(content)
    file = examine(path)
    file.check(USES)
    count = len(content['annotations'])
    assert file.objects == count
    assert file.left_out == {}
    assert read_by_mmdet(path, folder) == dict(pictures=len(content['images']), apple=count / 2, pear=count / 2)
    assert judged_by_mmdet(path) == 1


def test_the_good_file(good, write, read_by_mmdet, judged_by_mmdet):
    content, folder = good()
    path = write(content)
    file = examine(path)
    assert file.faults == ()
    assert file.summary(('apple', 'pear'), {}) == f'{path}: 6 images, 12 objects; all are read'
    assert read_by_mmdet(path, folder) == dict(pictures=6, apple=6, pear=6)
    assert judged_by_mmdet(path) == 1


@pytest.mark.parametrize('text', ['', '{', '[1, 2]', 'null', '"images"', '{"images": [1'])
def test_files_that_are_none(write, text):
    with pytest.raises(ValueError, match=r'half-written or no COCO file|no COCO file: one object'):
        examine(write(text.encode()))


def test_other_encodings(good, write):
    content, _ = good()
    text = json.dumps(content)
    for encoding in ('utf-8-sig', 'utf-16'):
        with pytest.raises(ValueError, match=rf'is {encoding} with a byte order mark.*python -c "from pathlib') as info:
            examine(write(text.encode(encoding)))
        command = str(info.value).partition('python -c "')[2].rstrip('"')
        exec(command)  # the advice, to the letter
        assert examine(write_path(info)).check(USES) is None
    with pytest.raises(ValueError, match=r'is not UTF-8 text'):
        examine(write(text.replace('apple', 'äpfel').encode('latin-1')))


def write_path(info):
    from pathlib import Path

    return Path(str(info.value).split("'")[1])


def test_single_slips_in_many_objects_are_said_and_pass(good, write, caplog, read_by_mmdet):
    """COCO's own train2017 has two boxes without width among 860,000."""
    content, folder = good()
    many(2, lambda a: a.update(bbox=[9.0, 9.0, 0.0, 9.0]))(content)
    path = write(content)
    file = examine(path)
    file.check(USES)
    assert '2 of 240 objects would be lost: boxes 2 without width or height' in caplog.text
    assert file.left_out == {'without width or height': 2}
    assert '2 objects are left out because they are without width or height' in file.summary(('apple', 'pear'), {})
    found = read_by_mmdet(path, folder)
    assert found['apple'] + found['pear'] == 238
    many(3, lambda a: a.update(bbox=[9.0, 9.0, 0.0, 9.0]))(content)
    with pytest.raises(ValueError, match=r'3 of 240 objects would be lost.*Or set allow_faulty_annotations = True'):
        examine(write(content)).check(USES)


def test_what_mmdet_survives_can_be_allowed(good, write, caplog):
    content, _ = good()
    content['annotations'][0]['category_id'] = 9
    file = examine(write(content))
    with pytest.raises(ValueError, match=r'category_id'):
        file.check(USES)
    file.check(USES, tolerant=True)
    assert '1 of 12 objects have a category_id' in caplog.text
    without('annotations', 'iscrowd')(content)
    with pytest.raises(ValueError, match=r'iscrowd'):  # pycocotools stops, whatever the config allows
        examine(write(content)).check(USES, tolerant=True)
    examine(write(content)).check(('train',), tolerant=True)
