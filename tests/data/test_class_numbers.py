"""Numbers of classes in heads, preprocessors and data, from the config alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from upvit_mm.data.checks import check_datasets
from upvit_mm.data.class_numbers import check_class_numbers, head_numbers

CONFIGS = Path(__file__).parents[2] / 'configs'


def numbers(**model) -> dict[str, int]:
    return head_numbers(dict(default_scope='mmdet', model=model))


def test_heads_of_a_detector():
    heads = numbers(
        type='MaskRCNN',
        rpn_head=dict(type='RPNHead', num_classes=1),
        roi_head=dict(
            bbox_head=[
                dict(type='Shared2FCBBoxHead', num_classes=3),
                dict(type='Shared2FCBBoxHead', num_classes=4, loss_cls=dict(type='SeesawLoss', num_classes=5)),
            ],
            mask_head=dict(type='FCNMaskHead', num_classes=6),
            semantic_head=dict(type='FusedSemanticHead', num_classes=183),
        ),
        train_cfg=dict(rcnn=dict(num_classes=7)),
    )
    assert heads == {
        'model.roi_head.bbox_head[0].num_classes': 3,
        'model.roi_head.bbox_head[1].num_classes': 4,
        'model.roi_head.bbox_head[1].loss_cls.num_classes': 5,
        'model.roi_head.mask_head.num_classes': 6,
    }


def test_heads_that_do_not_say():
    """mmdet's classes then take COCO's 80."""
    heads = numbers(roi_head=dict(bbox_head=dict(type='Shared2FCBBoxHead'), mask_head=dict(type='FCNMaskHead')))
    assert heads == {'model.roi_head.bbox_head.num_classes': 80, 'model.roi_head.mask_head.num_classes': 80}
    assert numbers(bbox_head=dict(type='RetinaHead')) == {}  # it must be given
    assert numbers(bbox_head=dict(type='NoSuchHead')) == {}


def test_heads_of_other_kinds():
    masks = dict(mask_head=dict(type='FCNMaskHead', num_classes=80, class_agnostic=True))
    assert numbers(roi_head=masks) == {}
    heads = numbers(panoptic_head=dict(type='Mask2FormerHead', num_things_classes=80, num_stuff_classes=53))
    assert heads == {'model.panoptic_head.num_things_classes': 80}
    assert numbers(detector=dict(bbox_head=dict(num_classes=3))) == {'model.detector.bbox_head.num_classes': 3}


def test_classifiers():
    head = dict(type='LinearClsHead', num_classes=4, loss=dict(type='LabelSmoothLoss', num_classes=5))
    cfg = dict(default_scope='mmpretrain', model=dict(head=head, teacher=dict(head=dict(num_classes=1000))))
    cfg['data_preprocessor'] = dict(num_classes=6, mean=[0.0])
    found = {'model.head.num_classes': 4, 'model.head.loss.num_classes': 5}
    assert head_numbers(cfg) == found | {'data_preprocessor.num_classes': 6}
    cfg['model']['data_preprocessor'] = dict(num_classes=7)  # goes before the other
    assert head_numbers(cfg) == found | {'model.data_preprocessor.num_classes': 7}


@pytest.mark.parametrize('name', ['mask-rcnn_up-pvtv2-micro_fpn', 'retinanet_up-deit-micro_sfp', 'up-deit-micro'])
def test_the_config_says_what_the_model_has(name, scope):
    from mmengine.registry import MODELS

    cfg = Config.fromfile(CONFIGS / f'demo/{name}_digits.py')
    scope(cfg.default_scope)
    modules = {
        f'model.{name}.num_classes': module.num_classes
        for name, module in MODELS.build(cfg.model).named_modules()
        if 'head' in name and 'rpn' not in name and isinstance(getattr(module, 'num_classes', None), int)
    }
    assert modules
    found = head_numbers(cfg)
    found.pop('data_preprocessor.num_classes', None)
    assert found == modules


def test_data_and_heads_of_a_detector(fruit):
    numbers = check_class_numbers(fruit.cfg(), ('train', 'val'))
    assert numbers == {'data of train': 3, 'data of val and test': 3, 'model.bbox_head.num_classes': 3}
    with pytest.raises(ValueError, match='numbers of classes differ') as info:
        check_datasets(fruit.cfg(heads=2), ('train', 'val'))
    assert str(info.value) == (
        'numbers of classes differ: data of train 3, data of val and test 3, model.bbox_head.num_classes 2. Set '
        'model.bbox_head.num_classes=3.'
    )


def test_data_and_heads_of_a_classifier(class_folders):
    """As when a pruning config still has the classes of an earlier task."""
    cfg = class_folders(('a', 'b', 'c', 'd'), ('a', 'b', 'c', 'd'))
    cfg['data_preprocessor'] = dict(num_classes=4)
    check_datasets(cfg, ('train', 'val'), {"the checkpoint's head": 4})
    with pytest.raises(ValueError, match='numbers of classes differ') as info:
        check_datasets(cfg, ('train', 'val'), {"the checkpoint's head": 1000})
    assert str(info.value) == (
        'numbers of classes differ: data of train 4, data of val 4, model.head.num_classes 4, '
        "data_preprocessor.num_classes 4, the checkpoint's head 1000. For the checkpoint's head use the data that it "
        'has learned from.'
    )
    cfg['data_preprocessor']['num_classes'] = cfg['model']['head']['num_classes'] = 2
    with pytest.raises(ValueError, match=r'Set model.head.num_classes=4, data_preprocessor.num_classes=4\.$'):
        check_datasets(cfg, ('train', 'val'))


def test_what_cannot_be_compared_passes(class_folders):
    cfg = class_folders()
    assert check_class_numbers(dict(cfg, model=dict(type='MAE')), ('train', 'val')) == {}
    del cfg['train_dataloader'], cfg['val_dataloader']
    assert check_class_numbers(cfg, ('train', 'val')) == {}


def test_stuff_of_panoptic_data_does_not_count():
    dataset = dict(type='CocoPanopticDataset')
    head = dict(type='Mask2FormerHead', num_things_classes=80, num_stuff_classes=53)
    cfg = dict(default_scope='mmdet', model=dict(panoptic_head=head), train_dataloader=dict(dataset=dataset))
    assert check_class_numbers(cfg, ()) == {'data of train': 80, 'model.panoptic_head.num_things_classes': 80}
