"""What a config's data are refused for before training starts, and checkpoints of other classes."""

from __future__ import annotations

import shutil

import pytest

from upvit_mm.data.checks import check_classes_of, check_datasets

CLASSES = tuple('0123456789')


def config(root, classes=CLASSES, **extra):
    dataset = dict(
        type='CocoDataset',
        metainfo=dict(classes=classes),
        data_root=str(root),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
    )
    return dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset)), **extra)


@pytest.fixture
def root(digits_folder, tmp_path):
    return shutil.copytree(digits_folder, tmp_path / 'digits', ignore=shutil.ignore_patterns('classification'))


def test_good_data_pass(root):
    check_datasets(config(root), ('train', 'val'))  # there is no val_dataloader


def test_folders(root):
    shutil.rmtree(root / 'train')
    with pytest.raises(FileNotFoundError, match=r"digits/train' does not exist"):
        check_datasets(config(root), ('train',))
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist"):
        check_datasets(dict(val_dataloader=dict(dataset=dict(type='CustomDataset', data_root='nowhere'))), ('val',))


@pytest.mark.parametrize(
    ('folder', 'end'),
    [
        ('data/digits', 'set data_root (the embedded digits: python tools/prepare_digits.py).'),
        ('data/coco', 'set data_root (docs/coco.md, step 1).'),
        ('data/digits_of_mine', 'set data_root.'),
        ('photos/coco', 'set data_root.'),
    ],
)
def test_a_folder_that_is_not_there_says_where_its_data_come_from(folder, end, tmp_path):
    with pytest.raises(FileNotFoundError) as info:
        check_datasets(config(tmp_path / folder), ('train',))
    assert str(info.value).endswith(end)


def test_a_relative_folder_is_named_with_the_one_that_was_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as info:
        check_datasets(config('data/mine'), ('train',))
    assert str(info.value).startswith(
        f"data folder 'data/mine' does not exist (tried '{tmp_path}/data/mine'): put the data there"
    )
    (tmp_path / 'data/mine/train').mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match=rf"instances_train.json' does not exist \(tried '{tmp_path}/data/mine/"
    ):
        check_datasets(config('data/mine'), ('train',))


def test_data_elsewhere_are_left_to_mmengine():
    check_datasets(config('s3://bucket/coco'), ('train',))
    check_datasets(dict(train_dataloader=dict(dataset=dict(type='CIFAR10', data_root='nowhere'))), ('train',))
    cfg = config('nowhere')
    cfg['train_dataloader']['dataset']['dataset']['backend_args'] = dict(backend='petrel')
    check_datasets(cfg, ('train',))
    cfg = config('')
    dataset = cfg['train_dataloader']['dataset']['dataset']
    dataset.update(ann_file='s3://bucket/a.json', data_prefix=dict(img='s3://bucket/train'))
    check_datasets(cfg, ('train',))


def test_annotation_file(root):
    path = root / 'annotations/instances_train.json'
    whole = path.read_text()
    for damaged in (
        '',
        whole[:-1],
        whole[: len(whole) // 2],
        '[]',
        '{"categories": {}}',
        '{"categories": [{"id": 1}]}',
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r'instances_train.json.* no COCO file'):
            check_datasets(config(root), ('train',))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r'instances_train.json. does not exist'):
        check_datasets(config(root), ('train',))


def test_categories(root):
    with pytest.raises(ValueError, match=r'1 categories that the config does not list: 9'):
        check_datasets(config(root, CLASSES[:-1]), ('train',))
    check_datasets(config(root, CLASSES[:-1], allow_unlisted_categories=True), ('train',))
    with pytest.raises(ValueError, match=r'lacks 1 of the 11 classes of the config: ten'):
        check_datasets(config(root, (*CLASSES, 'ten')), ('train',))


def test_classes_in_another_order_would_be_named_wrong(root):
    with pytest.raises(ValueError, match=r"another order.*classes=\('0', '1', '2'"):
        check_datasets(config(root, CLASSES[::-1]), ('train',))


def test_classes_from_a_file(root, tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join(CLASSES))
    check_datasets(config(root, str(names)), ('train',))
    with pytest.raises(
        ValueError, match=r"classes = 'seven': no such file of names; a tuple of one name needs a comma"
    ):
        check_datasets(config(root, 'seven'), ('train',))


def test_default_classes_are_those_of_coco(root):
    cfg = config(root)
    del cfg['train_dataloader']['dataset']['dataset']['metainfo']
    with pytest.raises(ValueError, match=r'lacks 80 of the 80 classes of the config: person'):
        check_datasets(cfg, ('train',))


# ----------------------------------------------------------------------- checkpoints


def meta(*classes):
    return dict(dataset_meta=dict(classes=classes, palette=None))


def test_a_checkpoint_of_the_same_classes(fruit, class_folders):
    for known in (meta('apple', 'pear', 'plum'), dict(CLASSES=['apple', 'pear', 'plum']), {}, dict(dataset_meta=None)):
        check_classes_of(known, fruit.cfg(), 'test', 'a.pth')
    check_classes_of(meta('apple'), dict(default_scope='mmdet'), 'test', 'a.pth')  # no such part
    check_classes_of(meta('cat', 'dog'), class_folders(), 'val', 'a.pth')


def test_a_checkpoint_of_other_classes(fruit, class_folders, caplog):
    for known in (meta('pear', 'apple', 'plum'), dict(CLASSES=('pear', 'apple', 'plum'))):
        with pytest.raises(ValueError, match='in another order') as info:
            check_classes_of(known, fruit.cfg(), 'test', 'a.pth')
        assert str(info.value) == (
            "checkpoint 'a.pth' has learned 3 classes (pear, apple, plum), test_dataloader has 3 (apple, pear, plum) "
            'in another order: the same labels mean other classes. Use the data and the classes that it was trained '
            'with.'
        )
    with pytest.raises(ValueError, match=r'learned 1 classes \(cat\), val_dataloader has 2 \(cat, dog\)'):
        check_classes_of(meta('cat'), class_folders(), 'val', 'a.pth')
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_classes_of(meta('cat'), class_folders(), 'train', 'a.pth', heads_anew=True)
        check_classes_of(meta('Cat', 'dog '), class_folders(), 'train', 'a.pth')
    assert [text.rpartition(': ')[2] for text in caplog.messages] == [
        'its heads are trained from scratch',
        'treated as the same',
    ]
