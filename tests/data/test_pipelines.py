"""Transforms of a proxy set: those of a test, at another size, and with labels."""

from __future__ import annotations

import pytest

from upvit_mm.data.image_set import folder_sets, held_out_set, proxy_set
from upvit_mm.data.pipelines import image_pipeline, picture_pipeline


def test_pictures_of_a_detector(detector_config):
    cfg = detector_config('pvtv2')
    plain = picture_pipeline(cfg)
    resize = next(step for step in plain if step['type'] == 'Resize')
    found = picture_pipeline(cfg, (96, 160))
    assert found == [{**step, 'scale': (160, 96)} if step is resize else step for step in plain]
    assert picture_pipeline(cfg) == plain  # the config is as it was
    steps = cfg.test_dataloader.dataset.pipeline
    steps.insert(2, dict(type='Pad', size=(64, 64), pad_val=dict(img=114)))
    assert picture_pipeline(cfg)[2]['size'] == (64, 64)
    assert picture_pipeline(cfg, (96, 160))[2] == dict(type='Pad', pad_val=dict(img=114), size_divisor=32)
    steps[:] = [step for step in steps if step['type'] != 'Resize']
    with pytest.raises(ValueError, match='size = 96x160: the test_dataloader has no Resize with a scale'):
        picture_pipeline(cfg, (96, 160))


def test_labels_are_loaded_before_anything_changes_the_picture(detector_config):
    cfg = detector_config('pvtv2', 'mask-rcnn')
    found = picture_pipeline(cfg, labelled=True)
    assert [step['type'] for step in found] == ['LoadImageFromFile', 'LoadAnnotations', 'Resize', 'PackDetInputs']
    assert found[1]['with_mask']
    steps = cfg.train_dataloader.dataset.pipeline
    steps[:] = [step for step in steps if step['type'] != 'LoadAnnotations']
    with pytest.raises(ValueError, match="criterion = 'loss': train_dataloader has no LoadAnnotations"):
        picture_pipeline(cfg, labelled=True)


@pytest.mark.parametrize(
    'middle',
    [
        [dict(type='ResizeEdge', scale=256, edge='short'), dict(type='CenterCrop', crop_size=224)],
        [dict(type='mmpretrain.Resize', scale=32)],
        [],
    ],
)
def test_images_of_a_classifier(cfg, middle):
    """Whole pictures are stretched; they are not cut first."""
    load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
    cfg.pop('test_dataloader', None)
    cfg.val_dataloader.dataset.pipeline = [load, *middle, pack]
    assert image_pipeline(cfg) == [load, *middle, pack]
    stretch = dict(type='Resize', scale=(96, 64), interpolation='bicubic')
    assert image_pipeline(cfg, (64, 96)) == [load, stretch, pack]


def test_only_the_proxy_set_has_the_size(cfg, scope, digits_folder):
    scope('mmpretrain')
    assert proxy_set(cfg, 1, 0, size=(96, 160))[0].images.shape == (10, 3, 96, 160)
    assert held_out_set(cfg, 2, 0)[0].images.shape == (2, 3, 64, 64)
    folder = str(digits_folder / 'classification/val')
    proxy, others = folder_sets(cfg, folder, 3, 2, 0, size=(96, 160))
    assert proxy[0].images.shape == (3, 3, 96, 160)
    assert others[0].images.shape == (2, 3, 64, 64)
