"""The embedded digits and the data sets made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from upvit_mm.data import prepare
from upvit_mm.data.checks import check_datasets
from upvit_mm.data.digits import CLASSES, load_digits, split_digits
from upvit_mm.data.prepare import prepare_digits, write_scenes
from upvit_mm.data.scenes import INK, MIN_VISIBLE, compose_scene, glyph

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def digits():
    return load_digits()


def test_mnist_5k_is_500_of_each_digit(digits):
    assert digits.images.shape == (5000, 28, 28)
    assert digits.images.dtype == np.uint8
    assert digits.images.max() == 255
    assert np.bincount(digits.labels).tolist() == [500] * 10


def test_split_shares_no_digit_and_keeps_the_classes_balanced(digits):
    splits = split_digits(digits, seed=3)
    assert {k: np.bincount(v.labels).tolist() for k, v in splits.items()} == {'train': [400] * 10, 'val': [100] * 10}
    seen = {split: {image.tobytes() for image in part.images} for split, part in splits.items()}
    assert not seen['train'] & seen['val']
    assert not np.array_equal(split_digits(digits, seed=4)['val'].images, splits['val'].images)


def test_the_longer_side_of_a_glyph_has_the_asked_length(digits):
    for image in digits.images[::500]:
        for side in (16, 40, 64):
            opacity = glyph(image, np.random.default_rng(0), side)
            assert 0 <= opacity.min() <= opacity.max() <= 1
            ys, xs = np.nonzero(opacity >= INK)
            diagonal = np.hypot(np.ptp(ys) + 1, np.ptp(xs) + 1)
            assert 0.6 * side <= diagonal <= 1.5 * side  # rotated by up to 15 degrees, thin ink may fade at the ends


def test_masks_of_a_scene_are_disjoint_and_mostly_visible(digits):
    for seed in range(20):
        picture, instances = compose_scene(digits, np.random.default_rng(seed), 128, (2, 6), (16, 64))
        assert picture.shape == (128, 128, 3)
        assert 1 <= len(instances) <= 6
        assert np.sum([i.mask for i in instances], axis=0).max() == 1


def test_a_mask_is_what_is_seen_of_its_digit(digits, monkeypatch):
    """Composed with and without the digits on top, a digit loses exactly the pixels of those on top."""
    whole = []
    place = compose_scene.__globals__['_place']
    monkeypatch.setitem(compose_scene.__globals__, '_place', lambda *args: whole.append(place(*args)) or whole[-1])
    monkeypatch.setitem(compose_scene.__globals__, 'PLACEMENT_TRIES', 1)  # no placement is thrown away and tried again
    overlaps = 0
    for seed in range(30):
        whole.clear()
        _, instances = compose_scene(digits, np.random.default_rng(seed), 96, (3, 3), (30, 60))
        if len(instances) < 3:
            continue
        masks = [opacity >= INK for opacity in whole]
        for i, instance in enumerate(instances):
            on_top = np.any([np.zeros_like(masks[0]), *masks[i + 1 :]], axis=0)
            assert np.array_equal(instance.mask, masks[i] & ~on_top)
            assert instance.mask.sum() >= MIN_VISIBLE * masks[i].sum()
            overlaps += (masks[i] & on_top).any()
    assert overlaps >= 5


def test_annotations_agree_with_their_masks(digits_folder):
    for split, scenes in (('train', 8), ('val', 2)):
        coco = COCO(digits_folder / 'annotations' / f'instances_{split}.json')
        assert len(coco.imgs) == scenes
        assert [c['name'] for c in coco.cats.values()] == list('0123456789')
        assert len(coco.anns) >= 2 * scenes
        for image in coco.imgs.values():
            picture = Image.open(digits_folder / split / image['file_name'])
            assert (picture.size, picture.mode) == ((image['width'], image['height']), 'RGB')
        for a in coco.anns.values():
            mask = coco.annToMask(a)
            ys, xs = np.nonzero(mask)
            assert a['bbox'] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert a['area'] == mask.sum() == coco_mask.area(a['segmentation'])
            assert a['area'] >= 0.6 * 16


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_ground_truth_as_detections_gives_ap_one(digits_folder, kind):
    coco = COCO(digits_folder / 'annotations' / 'instances_train.json')
    keys = ('image_id', 'category_id', 'bbox', 'segmentation')
    found = [{k: a[k] for k in keys} | {'score': 1.0} for a in coco.anns.values()]
    evaluation = COCOeval(coco, coco.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0, abs=1e-9)


def test_classification_set_is_in_class_folders(digits_folder):
    for split, count in (('train', 400), ('val', 100)):
        folder = digits_folder / 'classification' / split
        assert {p.name: len(list(p.iterdir())) for p in folder.iterdir()} == dict.fromkeys('0123456789', count)
    with Image.open(next((digits_folder / 'classification/val/7').iterdir())) as picture:
        assert (picture.size, picture.mode) == ((64, 64), 'RGB')


def _scene_bytes(digits, folder, seed, count=2):
    folder.mkdir()
    write_scenes(folder, digits, 'val', count, 128, seed)
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes(digits, tmp_path):
    first, second, other = (
        _scene_bytes(digits, tmp_path / name, seed) for name, seed in (('a', 5), ('b', 5), ('c', 6))
    )
    assert len(first) == 3
    assert first == second
    assert all(first[name] != other[name] for name in first)


def test_a_scene_does_not_depend_on_how_many_there_are(digits, tmp_path):
    few, many = _scene_bytes(digits, tmp_path / 'few', 5, 1), _scene_bytes(digits, tmp_path / 'many', 5, 3)
    pictures = [name for name in few if name.suffix == '.png']
    assert len(pictures) == 1
    assert few[pictures[0]] == many[pictures[0]]


def test_made_once_and_again_for_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, 'write_classification', lambda folder, *args: folder.mkdir(parents=True))
    assert prepare_digits(tmp_path / 'd', 4, 128, 0)
    assert not prepare_digits(tmp_path / 'd', 4, 128, 0)
    assert prepare_digits(tmp_path / 'd', 8, 128, 0)
    assert json.loads((tmp_path / 'd/dataset.json').read_text())['scenes'] == {'train': 8, 'val': 2}


def test_a_failure_leaves_the_old_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, 'write_classification', lambda folder, *args: folder.mkdir(parents=True))
    prepare_digits(tmp_path / 'd', 4, 128, 0)
    before = {p: p.read_bytes() for p in (tmp_path / 'd').rglob('*') if p.is_file()}

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(prepare, 'write_scenes', fail)
    with pytest.raises(OSError, match='disk full'):
        prepare_digits(tmp_path / 'd', 8, 128, 0)
    assert {p: p.read_bytes() for p in (tmp_path / 'd').rglob('*') if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ['d']


def test_refuses_a_foreign_folder_and_wrong_numbers(tmp_path):
    (tmp_path / 'thesis.tex').touch()
    with pytest.raises(ValueError, match='not a digits data set'):
        prepare_digits(tmp_path, 8, 128, 0)
    assert (tmp_path / 'thesis.tex').exists()
    with pytest.raises(ValueError, match='scenes = 3'):
        prepare_digits(tmp_path / 'd', 3, 128, 0)
    with pytest.raises(ValueError, match='size = 100'):
        prepare_digits(tmp_path / 'd', 8, 100, 0)


def test_in_coco_layout_a_config_for_coco_reads_the_same_scenes(tmp_path, monkeypatch):
    from mmdet.datasets import CocoDataset

    monkeypatch.setattr(prepare, 'write_classification', lambda *args: None)  # 5,000 files that play no part here

    settings = dict(scenes=4, size=128, seed=0)
    prepare_digits(tmp_path / 'digits', **settings)
    prepare_digits(tmp_path / 'coco', **settings, layout='coco')
    assert not prepare_digits(tmp_path / 'coco', **settings, layout='coco')
    plain = CocoDataset(
        data_root=str(tmp_path / 'digits'),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=CLASSES),
    )
    coco = CocoDataset(
        data_root=str(tmp_path / 'coco'),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
    )
    assert len(coco) == len(plain) == 4
    assert len(coco.metainfo['classes']) == 80
    assert [x['instances'] for x in map(coco.get_data_info, range(4))] == [
        x['instances'] for x in map(plain.get_data_info, range(4))
    ]
    assert Path(coco.get_data_info(0)['img_path']).is_file()
    categories = json.loads((tmp_path / 'coco/annotations/instances_val2017.json').read_text())['categories']
    assert [category['name'] for category in categories] == list(coco.metainfo['classes'])
    cfg = Config.fromfile(ROOT / 'configs/detection/retinanet_up-pvtv2-b0_fpn_1x_coco.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = f'{tmp_path}/coco/'
    cfg.val_evaluator.ann_file = f'{tmp_path}/coco/annotations/instances_val2017.json'
    check_datasets(cfg, ('train', 'val'))  # raises where a category or a file is missing
    assert prepare_digits(tmp_path / 'coco', **settings)  # the other layout: written anew
