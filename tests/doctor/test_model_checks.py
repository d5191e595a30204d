"""What is found in configs: data, classes, widths, weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from upvit_mm.doctor.findings import CHECKS, carry_out, examine
from upvit_mm.doctor.subject import Subject

CONFIG_CHECKS = [check for check in CHECKS.values() if check.section == 'config']


@pytest.mark.parametrize('name', ['retinanet', 'mask-rcnn', 'pvtv2', 'deit'])
def test_healthy_demo_configs(name, subject, backbone_file):
    """As trained by the demo, but for the batch: eight scenes would give fewer steps than the warm-up has."""
    config = subject(name, checkpoint=backbone_file('deit' if name == 'deit' else 'pvtv2'), batch_size=1, gpus=1)
    findings = list(examine(CONFIG_CHECKS, lambda check: carry_out(check, config)))
    assert [(finding.check, finding.found) for finding in findings if finding.status != 'ok'] == []
    detects = name in ('retinanet', 'mask-rcnn')
    assert {finding.check for finding in findings} == {check.name for check in CONFIG_CHECKS} - (
        set() if detects else {'evaluator', 'paramwise'}
    )
    found = {finding.check: finding.found for finding in findings}
    tensors = 102 if name == 'deit' else 192
    assert found['checkpoint'].endswith(f'has all {tensors} tensors of the backbone')
    assert found['classes'].startswith('10 in data of train, data of val and test, model.')


def test_a_config_that_cannot_be_read(find, subject, tmp_path):
    (missing,) = find('config', subject(str(tmp_path / 'no.py')))
    assert (missing.status, missing.found.startswith(f"config '{tmp_path}/no.py' does not exist")) == ('error', True)
    (tmp_path / 'wrong.py').write_text('model = dict(')
    (syntax,) = find('config', subject(str(tmp_path / 'wrong.py')))
    assert (syntax.status, 'SyntaxError' in syntax.found) == ('error', True)
    (tmp_path / 'other.py').write_text("default_scope = 'mmseg'")
    (other,) = find('config', Subject(str(tmp_path / 'other.py')))
    assert other.found.startswith("default_scope = 'mmseg': must be mmdet or mmpretrain")


def test_nothing_more_is_said_of_a_config_that_cannot_be_read(subject, tmp_path):
    config = subject(str(tmp_path / 'no.py'))
    first, last = examine(CONFIG_CHECKS, lambda check: carry_out(check, config))
    assert first.check == 'config'
    assert last.found.count(',') == len(CONFIG_CHECKS) - 2  # all others


# ----------------------------------------------------------------------- data


def test_all_parts_of_the_data(find, subject, digits_folder, tmp_path):
    root = shutil.copytree(digits_folder, tmp_path / 'digits', ignore=shutil.ignore_patterns('classification'))
    (root / 'annotations/instances_val.json').write_text('{"images": [')
    options = [f'val_dataloader.dataset.data_root={root}', 'train_dataloader.dataset.data_root=no/where']
    train, val, scenes, test = find('data', subject('retinanet', *options))
    assert [finding.status for finding in (train, val, scenes, test)] == ['error', 'error', 'ok', 'ok']
    assert train.found.startswith("train: data folder 'no/where")
    assert val.found.startswith(f"val: annotation file '{root}/annotations/instances_val.json' is half-written")
    assert scenes.found.startswith(f'test: {digits_folder}/annotations/instances_val.json: 2 images, ')
    assert test.found == f'test: CocoDataset in {digits_folder}'


def test_data_that_are_not_looked_at(find, subject):
    config = subject('pvtv2', *(f'{part}_dataloader.dataset.type=CIFAR10' for part in ('train', 'val', 'test')))
    assert [f.found.endswith('which this check does not know') for f in find('data', config)] == [True, True]


def test_annotations_of_other_images(find, subject, digits_folder):
    train = f'{digits_folder}/annotations/instances_train.json'
    val, test = find('evaluator', subject('retinanet', f'val_evaluator.ann_file={train}'))
    assert (val.status, test.status) == ('error', 'ok')
    assert f'val_evaluator.ann_file = {train}' in val.found
    assert val.found.endswith(f"Set val_evaluator.ann_file='{digits_folder}/annotations/instances_val.json'.")


def test_other_ways_to_write_a_type(find, subject):
    """As a new-style config gives it."""
    from mmdet.datasets import CocoDataset

    config = subject('retinanet')
    config.cfg.train_dataloader.dataset.update(type=CocoDataset, metainfo=dict(classes=('1', '0')))
    train, val = find('data', config)
    assert train.found.startswith("train: annotation file '")
    assert 'has 8 categories that the config does not list' in train.found
    assert val.status == 'error'
    config.cfg.train_dataloader.dataset.metainfo = config.cfg.val_dataloader.dataset.metainfo
    assert find('data', config)[1].found == f'train: CocoDataset in {config.cfg.train_dataloader.dataset.data_root}'


SWAPPED = 'metainfo.classes=["1","0","2","3","4","5","6","7","8","9"]'


@pytest.mark.parametrize(
    ('name', 'option', 'found_by'),
    [
        ('retinanet', None, None),
        ('retinanet', f'val_dataloader.dataset.{SWAPPED}', 'data'),
        ('retinanet', f'test_dataloader.dataset.{SWAPPED}', 'data'),
        ('retinanet', 'val_evaluator.ann_file={data}/annotations/instances_train.json', 'evaluator'),
        ('retinanet', 'model.bbox_head.num_classes=9', 'classes'),
        ('mask-rcnn', 'model.roi_head.mask_head.num_classes=9', 'classes'),
        ('pvtv2', None, None),
        ('pvtv2', 'train_dataloader.dataset.type=mmpretrain.ImageNet', 'data'),
        ('pvtv2', 'val_dataloader.dataset.data_prefix=', 'data'),
        ('pvtv2', 'data_preprocessor.num_classes=9', 'classes'),
    ],
)
def test_training_refuses_what_the_doctor_does(name, option, found_by, find, subject, digits_folder):
    from upvit_mm.data.checks import check_datasets

    config = subject(name, *([option.format(data=digits_folder)] if option else []))
    checks = [check for check in ('data', 'evaluator', 'classes') for f in find(check, config) if f.status == 'error']
    assert next(iter(checks), None) == found_by
    if found_by is None:
        check_datasets(config.cfg, ('train', 'val'))
    else:
        with pytest.raises(ValueError, match=r'class|mAP') as info:
            check_datasets(config.cfg, ('train', 'val'))
        assert str(info.value) in ' '.join(finding.found for finding in find(found_by, config))


def test_figures(find, subject, caplog):
    """The doctor and the log of a training have the same words."""
    from upvit_mm.data.checks import check_datasets

    config = subject('retinanet', 'val_dataloader.dataset.indices=1', 'model.test_cfg.max_per_img=1')
    *findings, _ = find('figures', config)
    assert {finding.status for finding in findings} == {'warning'}
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(config.cfg, ('train', 'val'))
    crowded, subset = caplog.messages
    assert [finding.found for finding in findings] == [crowded, subset]
    assert crowded.startswith('val: 2 of 2 pictures with objects have more than model.test_cfg.max_per_img = 1 (up to ')
    assert find('figures', subject('pvtv2'))[0].status == 'ok'


def test_warnings_of_the_data(find, subject, digits_folder, tmp_path):
    """What a training only writes into its log."""
    shutil.copytree(digits_folder / 'classification/val', tmp_path / 'val')
    for path in (tmp_path / 'val/7').iterdir():
        path.unlink()
    said, *rest = (
        f for f in find('data', subject('pvtv2', f'val_dataloader.dataset.data_root={tmp_path}')) if f.found[0] == 'v'
    )
    assert (said.status, said.found.endswith(': these classes are not evaluated')) == ('warning', True)
    assert [finding.status for finding in rest] == ['ok']


def unknown_category(content: dict) -> None:
    content['annotations'][0]['category_id'] = 77


def no_masks(content: dict) -> None:
    for row in content['annotations']:
        del row['segmentation']


def missing_picture(content: dict) -> None:
    content['images'][0]['file_name'] = 'gone.png'


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (unknown_category, 'have a category_id that is none of its categories (77; there are'),
        (no_masks, "lack 'segmentation' (id 1), which the pipeline loads"),
        (missing_picture, '1 of 8 pictures are not in'),
    ],
)
def test_both_doors_refuse_faults_of_a_file(spoil, words, find, subject, digits_folder, tmp_path):
    from upvit_mm.data.checks import check_datasets

    root = shutil.copytree(digits_folder, tmp_path / 'digits', ignore=shutil.ignore_patterns('classification'))
    path = root / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    config = subject('mask-rcnn', f'train_dataloader.dataset.data_root={root}')
    (fault,) = (finding for finding in find('data', config) if finding.status == 'error')
    assert words in fault.found
    with pytest.raises(ValueError, match=r'annotation file') as info:
        check_datasets(config.cfg, ('train', 'val'))
    assert f'train: {info.value}'[:600] == fault.found[:600]


# ---------------------------------------------------------------------- model


def test_models_that_do_not_build(find, subject):
    (finding,) = find('model', subject('retinanet', 'model.backbone.type=upvit_mm.UPPVTv3'))
    assert (finding.status, 'upvit_mm.UPPVTv3' in finding.found) == ('error', True)
    (finding,) = find('model', subject('retinanet', 'model.backbone.arch=deit-tiny'))
    assert "arch family = 'deit': this backbone builds pvtv2" in finding.found


def test_classes(find, subject):
    (finding,) = find('classes', subject('mask-rcnn', 'model.roi_head.mask_head.num_classes=7'))
    assert finding.status == 'error'
    assert 'data of train 10, data of val and test 10' in finding.found
    assert 'model.roi_head.bbox_head.num_classes 10, model.roi_head.mask_head.num_classes 7' in finding.found
    (finding,) = find('classes', subject('pvtv2', 'data_preprocessor.num_classes=1000'))
    assert 'model.head.num_classes 10, data_preprocessor.num_classes 1000' in finding.found


def test_one_class_folder_too_many(find, subject, digits_folder, tmp_path):
    shutil.copytree(digits_folder / 'classification/val', tmp_path / 'val')
    (tmp_path / 'val/ten').mkdir()
    config = subject('pvtv2', f'val_dataloader.dataset.data_root={tmp_path}')
    (finding,) = find('classes', config)
    assert 'data of train 10, data of val 11, data of test 10' in finding.found
    shutil.copy(tmp_path / 'val/9' / next((tmp_path / 'val/9').iterdir()).name, tmp_path / 'val/ten')
    assert 'labels mean other classes: none missing, ten more' in find('data', config)[1].found


def test_widths(find, subject):
    (finding,) = find('channels', subject('retinanet', 'model.neck.in_channels=[16,32,80,64]'))
    assert finding.status == 'error'
    assert finding.found == 'model.neck.in_channels = [16, 32, 80, 64], but the backbone gives [16, 32, 80, 128]'
    assert finding.remedy == 'model = dict(neck=dict(in_channels=[16, 32, 80, 128]))'
    (finding,) = find('channels', subject('retinanet', 'model.bbox_head.in_channels=32'))
    assert (finding.status, finding.found.startswith('RuntimeError: ')) == ('error', True)
    (finding,) = find('channels', subject('pvtv2', 'model.head.in_channels=96'))
    assert (finding.status, finding.found.startswith('RuntimeError: ')) == ('error', True)


def test_colours_of_a_caffe_config(find, subject):
    caffe = ('mean=[103.53,116.28,123.675]', 'std=[1.0,1.0,1.0]', 'bgr_to_rgb=False')
    (finding,) = find('colours', subject('retinanet', *(f'model.data_preprocessor.{word}' for word in caffe)))
    assert (finding.status, finding.found[:3]) == ('warning', 'BGR')
    (finding,) = find('colours', subject('pvtv2', 'data_preprocessor.to_rgb=False'))
    assert (finding.status, finding.found[:3]) == ('warning', 'BGR')


# -------------------------------------------------------------------- weights


def test_checkpoints_that_do_not_fit(find, subject, backbone_file, tmp_path):
    name = 'backbone.stages.0.norm.weight'
    path = backbone_file('pvtv2', **{name: torch.ones(17)})
    (finding,) = find('checkpoint', subject('retinanet', checkpoint=path))
    assert finding.status == 'error'
    assert '(the model has 192): stages.0.norm.weight has shape (17,), the model (16,)' in finding.found
    (finding,) = find('checkpoint', subject('retinanet', checkpoint=backbone_file('deit')))
    assert '(the model has 192): stages.0.' in finding.found

    cut = tmp_path / 'cut.pth'
    whole = Path(path).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    options = [f'model.backbone.init_cfg.{key}' for key in ('type=Pretrained', f'checkpoint={cut}')]
    (finding,) = find('checkpoint', subject('retinanet', *options))
    assert finding.found.startswith(f"checkpoint '{cut}' is corrupt or no checkpoint")


def test_weights_of_the_config(find, subject, backbone_file):
    path = backbone_file('pvtv2')
    options = [f'model.backbone.init_cfg.{key}' for key in ('type=Pretrained', f'checkpoint={path}')]
    first, second = find('checkpoint', subject('mask-rcnn', *options, f'load_from={path}'))
    assert first.found == second.found == f'{path} has all 192 tensors of the backbone'
    (finding,) = find('checkpoint', subject('mask-rcnn'))
    assert (finding.status, finding.found) == (
        'warning',
        'none: training starts from random weights, and mAP stays low',
    )
    resnet = ('_delete_=True', 'type=mmdet.ResNet', 'depth=18')
    (finding,) = find('checkpoint', subject('mask-rcnn', *(f'model.backbone.{setting}' for setting in resnet)))
    assert (finding.status, finding.found.startswith('ResNet is not of this package')) == ('ok', True)


def test_a_checkpoint_of_other_classes(find, subject, backbone_file):
    from upvit_mm.checkpoints import read_checkpoint, save_checkpoint

    path = backbone_file('pvtv2', **{'head.fc.weight': torch.zeros(10, 128), 'head.fc.bias': torch.zeros(10)})
    state = read_checkpoint(path)['state_dict']
    save_checkpoint(path, state, dataset_meta=dict(classes=[*'1023456789']))
    fine, classes = find('checkpoint', subject('pvtv2', checkpoint=path))
    assert (fine.status, classes.status) == ('ok', 'warning')
    assert '(0, 1, 2, 3, 4, 5, 6, 7, 8, 9) in another order: the same labels mean other classes' in classes.found


def test_heads_of_another_data_set(find, subject, backbone_file):
    heads = {'head.fc.weight': torch.zeros(1000, 128), 'head.fc.bias': torch.zeros(1000)}
    path = backbone_file('pvtv2', **heads)
    fine, heads = find('checkpoint', subject('pvtv2', checkpoint=path))
    assert (fine.status, heads.status) == ('ok', 'warning')
    assert heads.found.startswith('2 tensors outside the backbone differ: head.fc.weight has shape (1000, 128)')
    (finding,) = find('checkpoint', subject('retinanet', checkpoint=path))  # a classifier's file, for its backbone
    assert finding.status == 'ok'
