"""What changes figures without an error: each with its numbers, in the doctor's words and in the training's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from upvit_mm.data.checks import check_datasets
from upvit_mm.data.shifts import shifts_in


def crowd(fruit, *counts: int) -> None:
    """Validation pictures with these numbers of objects, all of one class."""
    content = fruit.load('val.json')
    rows = [
        dict(
            content['annotations'][0], id=1 + 1000 * k + j, image_id=k + 1, bbox=[j % 30, j // 30, 9.0, 8.0], area=72.0
        )
        for k, count in enumerate(counts)
        for j in range(count)
    ]
    fruit.save('val', content | dict(annotations=rows))


def test_nothing_to_say(fruit, class_folders):
    assert shifts_in(fruit.cfg(), ('train', 'val', 'test')) == []
    assert shifts_in(class_folders(), ('train', 'val')) == []


def test_more_objects_than_detections(fruit):
    crowd(fruit, 10, 16, 14)
    cfg = fruit.cfg()
    cfg['model']['test_cfg'] = dict(max_per_img=10)
    (text,) = shifts_in(cfg, ('train', 'val', 'test'))  # val and test are the same
    assert text == (
        'val: 2 of 3 pictures with objects have more than model.test_cfg.max_per_img = 10 (up to 16): 25.0% of the '
        'objects cannot be found. Set model.test_cfg.max_per_img=16.'
    )
    cfg['model']['test_cfg'] = dict(rcnn=dict(max_per_img=14), rpn=dict(max_per_img=15))
    (text,) = shifts_in(cfg, ('val',))
    assert 'model.test_cfg.rcnn.max_per_img = 14 and model.test_cfg.rpn.max_per_img = 15 (up to 16): 5.0%' in text
    cfg['model']['test_cfg'] = dict(rcnn=dict(max_per_img=16), rpn=dict(max_per_img=1000))
    assert shifts_in(cfg, ('val',)) == []


def test_more_objects_of_a_class_than_pycocotools_counts(fruit):
    crowd(fruit, 100, 130, 101)
    (text,) = shifts_in(fruit.cfg(), ('val',))
    assert text.startswith('val: in 2 pictures a class has more than 100 objects.')
    assert 'so 31 objects are missed' in text


def test_what_pycocotools_counts():
    """The rule behind that text: 130 perfect detections of 130 objects."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    boxes = [[10.0 * (j % 20), 10.0 * (j // 20), 8.0, 8.0] for j in range(130)]
    rows = [dict(id=j + 1, image_id=1, category_id=1, bbox=box, area=64.0, iscrowd=0) for j, box in enumerate(boxes)]
    truth.dataset = dict(images=[dict(id=1)], categories=[dict(id=1)], annotations=rows)
    truth.createIndex()
    found = truth.loadRes([dict(image_id=1, category_id=1, bbox=box, score=0.9) for box in boxes])
    judge = COCOeval(truth, found, 'bbox')
    judge.params.maxDets = [100, 300, 1000]  # mmdet's proposal_nums
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[0] == pytest.approx(100 / 130, abs=0.01)
    assert judge.stats[1] == pytest.approx(1.0)


def test_some_of_the_pictures(fruit):
    cfg = fruit.cfg(val=dict(indices=2))
    (text,) = shifts_in(cfg, ('train', 'val'))
    assert text == (
        'val: val_dataloader.dataset.indices takes 2 pictures, so figures are not those of the whole set, and '
        'CocoMetric counts all objects of the other pictures as missed. Leave indices out, or write an annotation file '
        'of these pictures.'
    )
    assert shifts_in(fruit.cfg(train=dict(indices=2)), ('train', 'val')) == []


def test_a_judge_with_more_pictures(fruit):
    content = fruit.load('val.json')
    few = dict(content, images=content['images'][:2], annotations=content['annotations'][:2])
    (fruit.root / 'few.json').write_text(json.dumps(few))
    (text,) = shifts_in(fruit.cfg(val=dict(ann_file='few.json')), ('val',))
    assert text.startswith('val: val_evaluator.ann_file has 3 pictures, val_dataloader.dataset 2: all objects of the')
    assert text.endswith(f"Set val_evaluator.ann_file='{fruit.root / 'few.json'}'.")


def test_validation_on_training_pictures(fruit, class_folders):
    cfg = fruit.cfg(
        val=dict(ann_file='train.json', data_prefix=dict(img='train/')), val_evaluator={}, test_evaluator={}
    )
    (text,) = shifts_in(cfg, ('train', 'val', 'test'))
    assert text == (
        f'val: 3 of 3 of the pictures are also training data ({fruit.root}/train/0.png), so figures are too good. Give '
        'it data of its own.'
    )
    pets = class_folders()
    pets['val_dataloader']['dataset']['data_prefix'] = 'train'
    (text,) = shifts_in(pets, ('train', 'val'))
    assert text.startswith('val: 1 of 1 of the class folders are also training data')
    pets['train_dataloader']['dataset']['indices'] = [0]  # the rest may be for validation
    assert shifts_in(pets, ('train', 'val')) == []


def test_a_list_with_training_pictures(class_folders, tmp_path):
    (tmp_path / 'train.txt').write_text('train/cat/a.png 0\ntrain/dog/a.png 1\n')
    (tmp_path / 'val.txt').write_text('val/cat/a.png 0\ntrain/dog/a.png 1\n')
    cfg = class_folders()
    for part in ('train', 'val'):
        cfg[f'{part}_dataloader']['dataset'].update(ann_file=str(tmp_path / f'{part}.txt'), data_prefix='')
    (text,) = shifts_in(cfg, ('train', 'val'))
    assert text.startswith(f'val: 1 of 2 of the pictures are also training data ({tmp_path}/pets/train/dog/a.png)')
    (tmp_path / 'val.txt').write_text('val/cat/b.png 0\n')
    with pytest.raises(ValueError, match=r"1 of 1 pictures are not in .*\('val/cat/b.png'\)"):
        check_datasets(cfg, ('train', 'val'))


def test_crops_of_two_sizes(class_folders, caplog):
    cfg = class_folders()
    cfg['train_dataloader']['dataset']['pipeline'] = [dict(type='RandomResizedCrop', scale=160)]
    cfg['val_dataloader']['dataset']['pipeline'] = [
        dict(type='ResizeEdge', scale=256),
        dict(type='CenterCrop', crop_size=224),
    ]
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(cfg, ('train', 'val'))
    assert caplog.messages == [
        'val: pictures are 224x224 at the end of the pipeline, training pictures 160x160. Give both the same crop.'
    ]
    assert shifts_in(cfg, ('val',)) == []  # a test alone


def test_some_boxes_that_look_like_corners(fruit, caplog):
    """2 of 40 objects from another tool."""
    content = fruit.load('train.json')
    rows = [
        dict(content['annotations'][0], id=j + 1, image_id=1 + j % 3, bbox=[24.0, 24.0, 20.0, 11.0]) for j in range(40)
    ]
    for row in rows:
        del row['segmentation']
        row['bbox'][0] = (row['id'] % 2) * 23 + row['id'] / 40  # neither corners nor centres
    for row in rows[:2]:
        row['bbox'] = [25.0 + row['id'], 20.0, 44.0, 40.0]
    fruit.save('train', content | dict(annotations=rows))
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(fruit.cfg(), ('train',))
    (text,) = caplog.messages
    assert text.startswith(
        f'annotation file {Path(fruit.root, "train.json")}: 2 of 40 objects have boxes that look like'
    )
