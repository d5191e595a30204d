"""What a config's data are refused for before training starts."""

from __future__ import annotations

import json
import shutil

import pytest

from upvit_mm.data.checks import check_datasets, read_categories

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
        with pytest.raises(ValueError, match=r'instances_train.json. is half-written or no COCO file'):
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


def test_categories_are_found_wherever_they_stand(tmp_path):
    content = {'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dög'}], 'images': [], 'annotations': []}
    (tmp_path / 'a.json').write_text(json.dumps(content, indent=1), encoding='utf-8')
    assert read_categories(tmp_path / 'a.json') == ['cat', 'dög']


def folder_config(root, **settings):
    dataset = dict(type='CustomDataset', data_root=str(root), data_prefix='train') | settings
    return dict(train_dataloader=dict(dataset=dataset))


@pytest.fixture
def folders(tmp_path):
    """Classes cat and dog, one image each, the dog's in a folder below."""
    for path in ('cat/a.PNG', 'dog/more/b.jpg'):
        (tmp_path / 'train' / path).parent.mkdir(parents=True)
        (tmp_path / 'train' / path).touch()
    return tmp_path


def test_class_folders(folders):
    check_datasets(folder_config(folders), ('train',))
    check_datasets(folder_config(folders, data_prefix=dict(img_path='train')), ('train',))
    check_datasets(folder_config(folders, type='ImageNet', split='train', data_prefix=''), ('train',))
    for name, file in (('.ipynb_checkpoints', 'notes.txt'), ('eel', '.hidden.png')):
        (folders / 'train' / name).mkdir()
        (folders / 'train' / name / file).touch()
    message = r"train': 2 of 4 class folders have no image \(.jpg, .*\): .ipynb_checkpoints, eel\. Put images there"
    image_net = dict(type='ImageNet', split='train', data_prefix='')
    for settings in ({}, image_net, dict(data_prefix=dict(img_path='train'))):
        with pytest.raises(ValueError, match=message):
            check_datasets(folder_config(folders, **settings), ('train',))
    with pytest.raises(ValueError, match=r'4 of 4 class folders have no image \(\.webp\): .ipynb_checkpoints, cat,'):
        check_datasets(folder_config(folders, extensions=['.WEBP']), ('train',))
    (folders / 'train/eel/b.webp').touch()
    (folders / 'train/.ipynb_checkpoints/b.webp').touch()
    check_datasets(folder_config(folders, extensions=['.webp', '.png', '.jpg']), ('train',))


def test_folders_that_are_no_classes(folders):
    """An annotation file names the images, or nobody asks for labels."""
    (folders / 'train/empty').mkdir()
    for settings in (dict(ann_file='list.txt'), dict(with_label=False), dict(type='ImageNet', split='test')):
        check_datasets(folder_config(folders, **settings), ('train',))
    (folders / 'meta').mkdir()
    (folders / 'meta/train.txt').touch()
    check_datasets(folder_config(folders, type='ImageNet', split='train', data_prefix=''), ('train',))
    with pytest.raises(FileNotFoundError, match=r"val' does not exist"):
        check_datasets(folder_config(folders, type='ImageNet', split='val', data_prefix=''), ('train',))
    with pytest.raises(ValueError, match=r"empty' has no class folders; set data_prefix"):
        check_datasets(folder_config(folders, data_prefix='train/empty'), ('train',))
