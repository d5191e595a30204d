"""Finding and reading pictures."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from matplotlib.image import imread

from upvit_mm.arch.size import parse_size
from upvit_mm.data import image_files as module
from upvit_mm.data.image_files import find_images


def test_sizes():
    assert parse_size('224') == (224, 224)
    assert parse_size('800x1333') == (800, 1333)
    for wrong in ('', '0', '22.4', '800x', 'x800', '800x0', '-3', '1x2x3'):
        with pytest.raises(ValueError, match='must be SIDE or HEIGHTxWIDTH'):
            parse_size(wrong)


def test_a_folder_is_searched_deeply_and_in_seeded_order(pictures):
    folder = pictures(9)
    (folder / 'a/b').mkdir(parents=True)
    shutil.move(folder / '000.png', folder / 'a/b/deep.PNG')
    (folder / 'notes.txt').touch()
    whole = find_images(folder, count=100)
    assert sorted(p.name for p in whole.paths) == sorted(['deep.PNG', *(f'{k:03}.png' for k in range(1, 9))])
    assert find_images(folder, count=100).paths == whole.paths != sorted(whole.paths)
    assert find_images(folder, count=3).paths == whole.paths[:3]
    assert find_images(folder, count=3, seed=1).paths != whole.paths[:3]


def test_pixels_come_as_bgr_at_the_wanted_size(pictures, monkeypatch):
    images = find_images(pictures(5), count=5)
    (batch,) = images.batches((48, 64))
    assert batch.dtype == torch.uint8
    expected = torch.from_numpy(imread(images.paths[0])[..., :3] * 255).round().byte()
    assert torch.equal(batch[0].permute(1, 2, 0).flip(2), expected)
    monkeypatch.setattr(module, 'PIXELS_AT_ONCE', 2 * 30 * 50 + 1)
    assert [tuple(b.shape) for b in images.batches((30, 50))] == [(2, 3, 30, 50), (2, 3, 30, 50), (1, 3, 30, 50)]
    assert [len(b) for b in images.batches((300, 500))] == [1] * 5


def test_coco_files(digits_folder, tmp_path):
    file = digits_folder / 'annotations/instances_val.json'
    found = find_images(file)
    assert sorted(p.parent for p in found.paths) == [digits_folder / 'val'] * 2
    shutil.copy(file, tmp_path / 'elsewhere.json')
    with pytest.raises(FileNotFoundError, match=r'no image of .*elsewhere.json.*name their folder'):
        find_images(tmp_path / 'elsewhere.json')
    assert find_images(tmp_path / 'elsewhere.json', digits_folder / 'val').paths == found.paths


def test_what_is_no_set_of_images(tmp_path, pictures):
    with pytest.raises(FileNotFoundError, match='no such folder or annotation file'):
        find_images(tmp_path / 'no')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match=r"folder '.*empty' holds no image \(.jpg, .*\)"):
        find_images(tmp_path / 'empty')
    for content in ('no json', '[]', '{}', '{"images": [{}]}'):
        (tmp_path / 'wrong.json').write_text(content)
        with pytest.raises(ValueError, match='is not a folder and not a COCO annotation file'):
            find_images(tmp_path / 'wrong.json')
    (tmp_path / 'wrong.json').write_text(json.dumps({'images': []}))
    with pytest.raises(ValueError, match='lists no image'):
        find_images(tmp_path / 'wrong.json')
    with pytest.raises(ValueError, match=r'gives 1 image: at least 2'):
        find_images(pictures(1, 'one'))
    with pytest.raises(ValueError, match=r'1 image\(s\) are wanted'):
        find_images(pictures(3), count=1)


def test_unreadable_images_are_left_out_or_refused(pictures, caplog):
    folder = pictures(101)
    (folder / '050.png').write_bytes(b'no picture')
    with caplog.at_level('WARNING', 'upvit_mm'):
        images = find_images(folder, count=101)
    assert len(images) == 100
    assert [p.name for p in images.unreadable] == ['050.png']
    assert '050.png cannot be read and is left out' in caplog.text
    (folder / '051.png').write_bytes(b'')
    with pytest.raises(ValueError, match=r'2 of 101 images cannot be read, .*05[01].png among them'):
        find_images(folder, count=101)
