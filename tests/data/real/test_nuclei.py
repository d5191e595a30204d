"""Folders of masks become COCO files: the masks of the fixtures come back as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from upvit_mm.data.coco import examine
from upvit_mm.data.real.nuclei import kind_of, part_of, write_nuclei
from upvit_mm.data.real.nuclei_split import LENGTH, TRAIN, VAL

PICTURES = Path(__file__).parents[2] / 'fixtures/pictures'


def test_masks_come_back(bowl, tmp_path, track):
    first = sorted(bowl.iterdir())[0]
    Image.new('L', (128, 128)).save(first / 'masks/zzz.png')  # empty
    shutil.copytree(first, bowl / 'my_slide_1')  # an id that is in no list
    out = tmp_path / 'out'
    counts = write_nuclei(bowl.parent, out, track)
    assert {part: (found.pictures, found.objects, found.left_out) for part, found in counts.items()} == {
        'train': (6, 71, {'empty masks': 1}),
        'val': (2, 34, {}),
        'test': (1, counts['test'].objects, {'empty masks': 1}),
    }
    for part in ('train', 'val'):
        expected = json.loads((PICTURES / f'nuclei/{part}.json').read_text())
        path = out / f'annotations/instances_{part}.json'
        content = json.loads(path.read_text())
        assert content['annotations'] == expected['annotations']
        kinds = [image.pop('kind') for image in content['images']]
        assert content['images'] == expected['images']
        assert (
            sorted(kinds)
            == ['fluorescence'] * {'train': 4, 'val': 1}[part] + ['stained'] * {'train': 2, 'val': 1}[part]
        )
        examine(path).check(('any', 'train', 'judge', 'masks'))
        name = content['images'][0]['file_name']
        written, source = (Image.open(root / name) for root in (out / f'images/{part}', PICTURES / f'nuclei/{part}'))
        assert written.mode == 'RGB'
        assert np.array_equal(np.asarray(written), np.asarray(source))
    assert (out / 'images/test/my_slide_1.png').is_file()


def test_the_split_depends_on_ids_alone():
    assert (len(TRAIN.split()), len(VAL.split())) == (470, 97)
    names = [*TRAIN.split(), *VAL.split()]
    assert len(set(names)) == 567
    assert {len(name) for name in names} == {LENGTH}
    assert part_of('00071198' + 56 * 'a') == 'train'
    assert part_of('03f583ec' + 56 * 'a') == 'val'
    assert part_of('12345678' + 56 * 'a') == 'test'
    drawn = [part_of(name, 0.2) for name in names]
    assert set(drawn) == {'train', 'val'}
    assert drawn.count('val') == 104  # 18 %; the draw is the same on every machine
    assert all(part_of(name, 0.3) == 'val' for name, part in zip(names, drawn) if part == 'val')


@pytest.mark.parametrize(
    ('colour', 'kind'),
    [((20, 20, 20), 'fluorescence'), ((220, 220, 220), 'brightfield'), ((150, 110, 160), 'stained')],
)
def test_kinds(colour, kind):
    assert kind_of(np.full((4, 4, 3), colour, dtype=np.uint8)) == kind


def test_mistakes(bowl, tmp_path, track):
    def refused(text: str, source: Path = bowl, **options) -> None:
        with pytest.raises(ValueError, match=text):
            write_nuclei(source, tmp_path / 'out', track, **options)
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)

    refused('val_fraction = 1.5: must be between 0 and 1', val_fraction=1.5)
    refused('0 validation pictures of 8; choose a share for validation', val_fraction=1e-9)
    refused('has no nuclei: must be the folder stage1_train, .*; found no such folder', tmp_path / 'no')
    first, second, *_ = sorted(bowl.iterdir())
    refused('has no nuclei: .*; found images, masks', first)
    Image.new('L', (64, 128)).save(first / 'masks/zzz.png')
    refused('zzz.png. has 64x128 pixels, its picture has 128x128')
    (first / 'masks/zzz.png').write_bytes(b'no picture')
    refused('zzz.png. cannot be read')
    (first / 'masks/zzz.png').unlink()
    Image.new('I;16', (128, 128)).save(first / f'images/{first.name}.png')
    refused('has mode I;16: must have 8 bits in a channel')
    shutil.copy(first / f'images/{first.name}.png', first / 'images/again.png')
    refused('images. has 2 .png files; must have one picture')
    shutil.rmtree(second / 'masks')
    refused(f'1 of 8 folders have no masks .{second.name}.')
