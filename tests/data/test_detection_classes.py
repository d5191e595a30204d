"""Classes of detection data, part against part: what is refused, and that the advice leads to a right run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config.lazy import LazyObject

from upvit_mm.data.checks import check_datasets

ROOT = Path(__file__).parents[2]
NAMES = ('apple', 'pear', 'plum')


def refused(cfg, parts=('train', 'val')) -> str:
    try:
        check_datasets(cfg, parts)
    except ValueError as error:
        return str(error)
    return pytest.fail('passed')


def follow(message: str) -> str:
    """Run the command of a message; what it prints."""
    command = shlex.split(re.search(r'Run: python (.*?) ; then', message)[1])
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def objects_by_label(cfg, part: str, scope) -> dict[int, int]:
    """What mmdet reads."""
    from mmdet.registry import DATASETS

    scope('mmdet')
    dataset = DATASETS.build(dict(cfg[f'{part}_dataloader']['dataset'], pipeline=[]))
    labels = [instance['bbox_label'] for k in range(len(dataset)) for instance in dataset.get_data_info(k)['instances']]
    return dict(Counter(labels))


def judged_by(fruit, name: str) -> dict:
    judge = dict(type='CocoMetric', ann_file=str(fruit.root / name), metric='bbox')
    return dict(val_evaluator=judge, test_evaluator=judge)


def test_good_data_pass(fruit):
    check_datasets(fruit.cfg(), ('train', 'val', 'test'))


# --------------------------------------------------------------- order and number


@pytest.mark.parametrize('listed_as_in_the_file', [False, True])
def test_another_order_in_a_part(listed_as_in_the_file, fruit, scope):
    """Also where metainfo follows the file, which makes mmdet swap names."""
    fruit.write('val', NAMES[::-1])
    cfg = fruit.cfg(val=dict(metainfo=dict(classes=NAMES[::-1])) if listed_as_in_the_file else {})
    message = refused(cfg)
    assert message.startswith(
        f"annotation file '{fruit.root}/val.json' (val_dataloader.dataset) has the classes of train_dataloader.dataset "
        'in another order (plum, pear, apple instead of apple, pear, plum): mmdet numbers labels in'
    )
    listing = ', and give val_dataloader.dataset, test_dataloader.dataset the metainfo of train_dataloader.dataset.'
    assert message.endswith(listing) == listed_as_in_the_file
    assert (
        'then name val_matched.json instead of val.json as ann_file of val_dataloader.dataset, '
        'test_dataloader.dataset, val_evaluator, test_evaluator'
    ) in message
    assert follow(message) == f'{fruit.root}/val_matched.json: 3 categories: apple, pear, plum\n'
    right = fruit.cfg(val=dict(ann_file='val_matched.json'), **judged_by(fruit, 'val_matched.json'))
    check_datasets(right, ('train', 'val', 'test'))
    # the file's first category is plum, of id 1
    assert objects_by_label(cfg, 'val', scope) == objects_by_label(right, 'val', scope) == {0: 1, 1: 1, 2: 1}
    fruit_of = {row['id']: row['category_id'] for row in fruit.load('val_matched.json')['annotations']}
    assert fruit_of == {1: 1, 2: 2, 3: 3}
    assert [c['id'] for c in fruit.load('val_matched.json')['categories']] == [3, 2, 1]


@pytest.mark.parametrize('listed_as_in_the_file', [False, True])
def test_a_part_without_one_class(listed_as_in_the_file, fruit, scope):
    content = fruit.load('val.json')
    content['annotations'] = [row for row in content['annotations'] if row['category_id'] != 2]
    content['categories'] = [category for category in content['categories'] if category['name'] != 'pear']
    fruit.save('val', content)
    listed = dict(metainfo=dict(classes=('apple', 'plum')))
    message = refused(fruit.cfg(val=listed if listed_as_in_the_file else {}))
    assert 'val.json' in message
    assert 'lacks 1 of the 3 classes of train_dataloader.dataset: pear: mmdet numbers labels' in message
    assert follow(message).splitlines()[1] == 'added, without objects: pear'
    right = fruit.cfg(val=dict(ann_file='val_matched.json'), **judged_by(fruit, 'val_matched.json'))
    check_datasets(right, ('train', 'val', 'test'))
    assert objects_by_label(right, 'val', scope) == {0: 1, 2: 1}


def test_the_training_part_is_told_what_its_file_has(fruit):
    message = refused(fruit.cfg(NAMES[::-1]))
    assert "train.json' has the classes of the config in another order" in message
    assert message.endswith(
        "Set num_classes=3 in every head and metainfo=dict(classes=('apple', 'pear', 'plum')) in "
        'train_dataloader.dataset, val_dataloader.dataset, test_dataloader.dataset.'
    )
    message = refused(fruit.cfg(('apple', 'kiwi')))
    assert 'lacks 1 of the 2 classes of the config: kiwi; it has apple, pear, plum. Set num_classes=3 in' in message


def test_names_that_look_alike(fruit):
    message = refused(fruit.cfg(('Apple', 'pear ', 'plum')))
    assert "(different only in case or blanks: 'Apple' for 'apple', 'pear ' for 'pear')" in message
    fruit.write('val', ('Apple', 'pear', 'plum '))
    message = refused(fruit.cfg())
    assert "apple, plum (different only in case or blanks: 'apple' for 'Apple', 'plum' for 'plum ')" in message
    assert follow(message).splitlines()[1:] == ["'Apple' is now 'apple'", "'plum ' is now 'plum'"]
    check_datasets(
        fruit.cfg(val=dict(ann_file='val_matched.json'), **judged_by(fruit, 'val_matched.json')), ('train', 'val')
    )


def test_a_subset_on_purpose(fruit, scope):
    message = refused(fruit.cfg(('apple', 'plum')))
    assert 'has 1 categories that the config does not list: pear.' in message
    cfg = fruit.cfg(('apple', 'plum'), allow_unlisted_categories=True)
    check_datasets(cfg, ('train', 'val', 'test'))
    assert objects_by_label(cfg, 'val', scope) == {0: 1, 1: 1}
    fruit.write('val', ('plum', 'pear', 'apple'))
    assert 'in another order (plum, apple instead of apple, plum)' in refused(cfg)


def test_a_class_that_training_does_not_know(fruit):
    fruit.write('val', (*NAMES, 'kiwi'))
    message = refused(fruit.cfg())
    assert '(val_dataloader.dataset) has 1 categories that train_dataloader.dataset does not list: kiwi. Set' in message
    check_datasets(fruit.cfg(allow_unlisted_categories=True), ('train', 'val'))


def test_parts_that_are_not_read_must_list_the_same(fruit):
    """A test part that was forgotten has COCO's classes."""
    cfg = fruit.cfg()
    cfg['test_dataloader'] = dict(dataset=dict(type='CocoDataset', data_root='elsewhere', ann_file='test.json'))
    assert refused(cfg) == (
        'test_dataloader.dataset lists 80 classes (person, bicycle, car, motorcycle, airplane, bus, train, truck, '
        'boat, traffic light and 70 more), train_dataloader.dataset 3 others (apple, pear, plum). Give '
        'test_dataloader.dataset the metainfo of train_dataloader.dataset.'
    )
    cfg['test_dataloader']['dataset']['metainfo'] = dict(classes=('pear', 'apple', 'plum'))
    assert 'train_dataloader.dataset in another order (apple, pear, plum)' in refused(cfg)


def test_training_data_that_are_not_here(fruit):
    """Only the test data are on this machine."""
    fruit.write('val', NAMES[::-1])
    message = refused(fruit.cfg(train=dict(data_root='s3://bucket/fruit')), ('test',))
    assert '--like TRAINING_FILE ; then' in message
    assert '(test_dataloader.dataset) has the classes of train_dataloader.dataset in another order' in message


def test_several_data_sets_of_a_part(fruit):
    cfg = fruit.cfg()
    second = dict(cfg['train_dataloader']['dataset'], ann_file='more.json')
    fruit.write('more', ('pear', 'apple', 'plum'))
    shutil.copytree(fruit.root / 'more', fruit.root / 'train', dirs_exist_ok=True)
    inner = dict(type='ConcatDataset', datasets=[cfg['train_dataloader']['dataset'], second])
    cfg['train_dataloader'] = dict(dataset=dict(type='RepeatDataset', times=2, dataset=inner))
    message = refused(cfg)
    assert (
        '(train_dataloader.dataset.dataset.datasets[1]) has the classes of train_dataloader.dataset.dataset.' in message
    )


def test_several_files_in_one_data_set(fruit):
    message = refused(fruit.cfg(train=dict(ann_file=['train.json', 'val.json'])))
    assert message == (
        "train_dataloader.dataset.ann_file = ['train.json', 'val.json']: must be one file; for several use "
        'ConcatDataset.'
    )


def test_detectors_that_read_class_names_may_have_others_in_each_part(fruit):
    fruit.write('val', ('cherry', 'kiwi'))
    cfg = fruit.cfg(val=dict(metainfo=dict(classes=('cherry', 'kiwi'))))
    cfg['model'] = dict(type='GroundingDINO', language_model=dict(type='BertModel'), bbox_head=dict(num_classes=256))
    check_datasets(cfg, ('train', 'val'))


# --------------------------------------------------------------------- evaluators


def test_a_metric_with_categories_in_another_order(fruit):
    fruit.write('val', NAMES[::-1])
    shutil.copy(fruit.root / 'val.json', fruit.root / 'old.json')
    fruit.write('val', NAMES)
    message = refused(fruit.cfg(**judged_by(fruit, 'old.json')))
    assert message == (
        f"val_evaluator.ann_file = '{fruit.root}/old.json' has plum, pear, apple of the classes, in this order, "
        'val_dataloader.dataset has apple, pear, plum: mmdet numbers labels in the order of the categories in each '
        f"file, so detections count for other classes. Set val_evaluator.ann_file='{fruit.root}/val.json', "
        'without sort_categories.'
    )


def test_a_metric_that_sorts_categories(fruit):
    content = fruit.load('train.json')
    content['categories'].reverse()  # ids 3, 2, 1
    fruit.save('train', content)
    fruit.save('val', content | dict(images=[], annotations=[]) | {})
    shutil.copy(fruit.root / 'train.json', fruit.root / 'val.json')
    cfg = fruit.cfg(NAMES[::-1])
    check_datasets(cfg, ('train', 'val'))
    cfg['val_evaluator'] = dict(cfg['val_evaluator'], sort_categories=True)
    assert 'has apple, pear, plum of the classes, in this order, val_dataloader.dataset has plum' in refused(cfg)


def test_a_metric_that_judges_by_other_annotations(fruit):
    """The training file has pictures of the same ids and names."""
    message = refused(fruit.cfg(**judged_by(fruit, 'train.json')))
    assert message == (
        f'val_evaluator.ann_file = {fruit.root}/train.json, but the images are of {fruit.root}/val.json: mAP would '
        f"mean nothing. Set val_evaluator.ann_file='{fruit.root}/val.json'."
    )
    with pytest.raises(FileNotFoundError, match=r"nowhere.json' does not exist"):
        check_datasets(fruit.cfg(**judged_by(fruit, 'nowhere.json')), ('val',))


def test_files_that_judge_as_well(fruit):
    """A copy elsewhere, a file of more pictures, and one of all annotations where the data set has none."""
    shutil.copy(fruit.root / 'val.json', fruit.root / 'copy.json')
    content = fruit.load('val.json')
    content['images'].append(dict(id=9, file_name='9.png', width=48, height=48))
    fruit.save('more', content)
    for name in ('copy.json', 'more.json'):
        check_datasets(fruit.cfg(**judged_by(fruit, name)), ('train', 'val', 'test'))
    fruit.save('pictures', fruit.load('val.json') | dict(annotations=[]))
    cfg = fruit.cfg(val=dict(ann_file='pictures.json'))
    check_datasets(cfg, ('train', 'val'))


def test_metrics_in_a_list_and_in_an_evaluator(fruit):
    other = judged_by(fruit, 'train.json')['val_evaluator']
    good = judged_by(fruit, 'val.json')['val_evaluator']
    assert refused(fruit.cfg(val_evaluator=[good, other])).startswith('val_evaluator[1].ann_file = ')
    assert refused(fruit.cfg(val_evaluator=dict(type='Evaluator', metrics=[other]))).startswith(
        'val_evaluator[0].ann_f'
    )
    check_datasets(fruit.cfg(val_evaluator=[good, dict(type='VOCMetric')]), ('val',))


# ---------------------------------------------------------------- kinds and places


@pytest.fixture
def registered(monkeypatch):
    """``registered(name, **attributes)``: a user's subclass of CocoDataset under that name."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    def register(name: str, **attributes):
        kind = type(name, (CocoDataset,), attributes)
        monkeypatch.setitem(DATASETS._module_dict, name, kind)
        return kind

    return register


def test_all_ways_to_write_the_type(fruit, registered):
    from mmdet.datasets import CocoDataset

    own = registered('Orchard')
    for kind in ('mmdet.CocoDataset', CocoDataset, own, 'Orchard', LazyObject('mmdet.datasets', 'CocoDataset')):
        cfg = fruit.cfg(('apple', 'pear'), train=dict(type=kind))
        assert 'has 1 categories that the config does not list: plum' in refused(cfg)
    judge = dict(judged_by(fruit, 'train.json')['val_evaluator'])
    for kind in ('mmdet.CocoMetric', LazyObject('mmdet.evaluation', 'CocoMetric'), 'CocoOccludedSeparatedMetric'):
        assert 'mAP would mean nothing' in refused(fruit.cfg(val_evaluator=dict(judge, type=kind)))


def test_classes_of_a_users_class(fruit, registered):
    registered('Orchard', METAINFO=dict(classes=('apple', 'pear')))
    orchard = dict(type='Orchard', metainfo=None)
    message = refused(fruit.cfg(heads=2, train=orchard, val=orchard))
    assert 'has 1 categories that the config does not list: plum' in message


def test_a_class_that_reads_in_a_way_of_its_own(fruit, registered, caplog):
    registered('Orchard', load_data_list=lambda self: [])
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(fruit.cfg(('apple', 'pear'), train=dict(type='Orchard')), ('train',))
    assert caplog.messages == ['train_dataloader.dataset: Orchard reads data in its own way, so they are not checked']


@pytest.mark.parametrize(
    'settings',
    [
        dict(backend_args=None),
        dict(backend_args=dict()),
        dict(backend_args=dict(backend='local')),
        dict(file_client_args=dict(backend='disk')),
    ],
    ids=str,
)
def test_a_backend_that_is_this_disk(settings, fruit):
    assert 'does not list: plum' in refused(fruit.cfg(('apple', 'pear'), train=settings, val=settings), ('train',))
    judges = judged_by(fruit, 'train.json')
    judges = {key: dict(judge, **settings) for key, judge in judges.items()}
    assert 'mAP would mean nothing' in refused(fruit.cfg(**judges))


def test_backends_that_are_elsewhere(fruit):
    elsewhere = dict(backend_args=dict(backend='petrel'), ann_file='nowhere.json')
    judge = dict(type='CocoMetric', ann_file='nowhere.json', backend_args=dict(backend='petrel'))
    check_datasets(fruit.cfg(train=elsewhere, val=elsewhere, val_evaluator=judge), ('train', 'val'))


def test_names_that_no_one_reads(fruit):
    message = refused(fruit.cfg(train=dict(metainfo=dict(CLASSES=NAMES))))
    assert message == (
        'train_dataloader.dataset.metainfo.CLASSES is not read by this OpenMMLab; write metainfo.classes.'
    )
