"""Pictures that an annotation file names: there, readable, and of the size that it says."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from upvit_mm.data.coco import check_names, check_sizes, turns_pictures

NAMES = ['a.jpg', 'b.jpg', 'more/c.jpg']
SIZES = [(96, 64)] * 3
ORIENTATION = 0x0112


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'val/more').mkdir(parents=True)
    for name in NAMES:
        save(tmp_path / 'val' / name)
    return tmp_path / 'val'


def save(path, width=96, height=64, orientation=1):
    picture = Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8))
    exif = picture.getexif()
    exif[ORIENTATION] = orientation
    picture.save(path, exif=exif)


def test_good_pictures_pass(folder, caplog):
    check_names(folder, NAMES, 'val.json')
    check_sizes(folder, NAMES, SIZES, True, 'val.json')
    assert caplog.text == ''


def test_missing_pictures_are_counted_and_looked_for(folder):
    (folder / 'b.jpg').unlink()
    with pytest.raises(ValueError, match=r"val.json: 1 of 3 pictures are not in '.*val' \('b.jpg'\). Put them there"):
        check_names(folder, NAMES, 'val.json')
    (folder / 'images').mkdir()
    shutil.move(folder / 'a.jpg', folder / 'images/a.jpg')
    with pytest.raises(ValueError, match=r"2 of 3 pictures .* 'a.jpg' is in '.*val/images': correct data_prefix=dict"):
        check_names(folder, NAMES, 'val.json')
    with pytest.raises(ValueError, match=r"1 of 1 pictures .* There is 'c.jpg', with other letters"):
        check_names(folder, ['more/C.JPG'], 'val.json')
    with pytest.raises(ValueError, match=r'3 of 3 pictures are not in'):
        check_names(folder / 'nowhere', NAMES, 'val.json')


def test_sizes_are_those_of_the_pictures(folder):
    save(folder / 'b.jpg', 48, 32)
    with pytest.raises(ValueError, match=r"1 of 3 .*'b.jpg' is loaded as 48x32, the file says 96x64.*scale boxes and"):
        check_sizes(folder, NAMES, SIZES, True, 'val.json')
    (folder / 'b.jpg').write_bytes(b'\xff\xd8\xff\xe0' + bytes(100))
    with pytest.raises(ValueError, match=r"1 of 3 pictures that were opened cannot be read .'b.jpg'"):
        check_sizes(folder, NAMES, SIZES, True, 'val.json')


def test_turned_pictures(folder):
    """As mmcv loads them: cv2 turns a picture as its EXIF orientation says, unless it is told not to."""
    import mmcv

    for name in NAMES:
        save(folder / name, orientation=6)
    assert mmcv.imread(folder / 'a.jpg').shape[:2] == (96, 64)
    assert mmcv.imread(folder / 'a.jpg', flag='color_ignore_orientation').shape[:2] == (64, 96)
    with pytest.raises(
        ValueError, match=r"3 of 3 .*'a.jpg' is loaded as 64x96, the file says 96x64.*color_ignore_orien"
    ):
        check_sizes(folder, NAMES, SIZES, True, 'val.json')
    check_sizes(folder, NAMES, SIZES, False, 'val.json')
    turned = [(64, 96)] * 3
    check_sizes(folder, NAMES, turned, True, 'val.json')
    with pytest.raises(ValueError, match=r'loaded as 96x64, the file says 64x96.*leave color_type'):
        check_sizes(folder, NAMES, turned, False, 'val.json')


@pytest.mark.parametrize(('orientation', 'height'), [(3, 64), (2, 64), (6, 96)])
def test_turns_that_the_size_does_not_show_are_said(folder, caplog, orientation, height):
    save(folder / 'b.jpg', 96, height, orientation)
    check_sizes(folder, NAMES, [(96, 64), (96, height), (96, 64)], True, 'val.json')
    assert "1 of 3 pictures that were opened ('b.jpg') are rotated or mirrored" in caplog.text


def test_which_pipelines_turn_pictures():
    assert turns_pictures([])
    assert turns_pictures([dict(type='LoadImageFromFile'), dict(type='Resize')])
    assert turns_pictures([dict(type='LoadImageFromFile', color_type='grayscale')])
    assert not turns_pictures([dict(type='LoadImageFromFile', color_type='color_ignore_orientation')])
    assert not turns_pictures([dict(type='LoadImageFromFile', color_type='unchanged')])
