"""What is found in the way a config trains."""

from __future__ import annotations

import pytest
import torch

ADAM = 'optim_wrapper.optimizer'
SGD = (f'{ADAM}._delete_=True', f'{ADAM}.type=SGD', f'{ADAM}.lr=0.02', f'{ADAM}.weight_decay=1e-4')
SCHEDULE = 'param_scheduler.1'  # the cosine, behind a warm-up of 30 iterations


@pytest.fixture
def one(find, subject):
    """``one(check, name, *options, **fields)``: the only finding about a changed demo config."""

    def single(check, *words, **fields):
        (finding,) = find(check, subject(*words, **fields))
        return finding

    return single


# ------------------------------------------------------------------ optimizer


def test_sgd(one):
    finding = one('optimizer', 'retinanet', *SGD)
    assert (finding.status, finding.found.split(':')[0]) == ('warning', 'SGD')
    assert "type='AdamW'" in finding.remedy
    resnet = ('_delete_=True', 'type=mmdet.ResNet', 'depth=18', 'num_stages=4')
    assert one('optimizer', 'retinanet', *SGD, *(f'model.backbone.{word}' for word in resnet)).status == 'ok'


def test_settings_of_another_optimizer(one):
    finding = one('optimizer', 'retinanet', f'{ADAM}.momentum=0.9')
    assert (finding.status, 'momentum' in finding.found, '_delete_' in finding.remedy) == ('error', True, True)


def test_mixed_precision_without_a_gpu(find, subject, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    kind, amp = find('optimizer', subject('pvtv2', 'optim_wrapper.type=AmpOptimWrapper'))
    assert (kind.status, amp.status) == ('ok', 'warning')
    assert amp.remedy == '--cfg-options optim_wrapper.type=OptimWrapper'
    options = ('optim_wrapper.type=AmpOptimWrapper', 'optim_wrapper.dtype=bfloat16')
    assert "_delete_=True, type='OptimWrapper'" in find('optimizer', subject('pvtv2', *options))[1].remedy


def test_a_config_for_testing_alone(find, subject):
    config = subject('pvtv2')
    config.cfg.optim_wrapper = None
    assert find('optimizer', config) == []


def test_weight_decay_of_our_backbones(one, subject):
    """As built, whatever the text of the config says."""
    for name, options in (('deit', []), ('retinanet', ['optim_wrapper.paramwise_cfg=None'])):
        finding = one('weight_decay', name, *options)
        backbone = subject(name).model.backbone
        acts = [p for n, p in backbone.named_parameters() if p.ndim > 1 and n.endswith('.weight')]
        count, total = sum(p.numel() for p in acts), sum(p.numel() for p in backbone.parameters())
        tensors = len(list(backbone.parameters()))
        assert finding.status == 'ok'
        assert finding.found.startswith(
            f'weight decay 0.05 acts on {count:,} of {total:,} parameters of the backbone ({len(acts)} of {tensors} '
            'tensors) and '
        )
    assert one('weight_decay', 'deit', f'{ADAM}.weight_decay=0.0').found == 'no weight decay'


def test_weight_decay_on_positions_of_other_backbones(one):
    vit = ('_delete_=True', 'type=VisionTransformer', 'arch=deit-tiny', 'img_size=32', 'out_type=cls_token')
    options = [f'model.backbone.{word}' for word in vit]
    finding = one('weight_decay', 'deit', *options)
    assert finding.status == 'warning'
    assert finding.found == 'weight decay pulls backbone.cls_token, backbone.pos_embed to zero'
    assert "'pos_embed': dict(decay_mult=0.0)" in finding.remedy


def test_keys_that_match_nothing(one):
    keys = 'optim_wrapper.paramwise_cfg.custom_keys'
    finding = one('paramwise', 'deit', f'{keys}.bakbone.lr_mult=0.1', f'{keys}.head.lr_mult=2.0')
    assert (finding.status, finding.found) == ('warning', 'custom_keys that match no parameter: bakbone')
    finding = one('paramwise', 'deit', f'{keys}.head.lr_mult=2.0')
    assert finding.found.endswith('they match: head (2)')


# -------------------------------------------------------------- learning rate


def test_learning_rate(one):
    meant = 'auto_scale_lr.base_batch_size=64'
    finding = one('learning_rate', 'retinanet', meant, batch_size=4, gpus=2)
    assert (finding.status, finding.found) == ('warning', '0.002 is meant for 64 images, a step has 8 images (2 x 4)')
    assert finding.remedy == '--cfg-options optim_wrapper.optimizer.lr=0.00025, or --auto-scale-lr'
    assert (
        one('learning_rate', 'retinanet', meant, batch_size=4, gpus=16).found
        == '0.002 for 64 images (16 x 4), as meant'
    )
    scaled = one('learning_rate', 'retinanet', meant, 'auto_scale_lr.enable=True', batch_size=4, gpus=2)
    assert (scaled.status, 'is scaled to 0.00025' in scaled.found) == ('ok', True)


def test_accumulated_steps(one):
    """mmengine's own scaling does not know of them."""
    options = ('auto_scale_lr.base_batch_size=64', 'auto_scale_lr.enable=True', 'optim_wrapper.accumulative_counts=2')
    finding = one('learning_rate', 'retinanet', *options, batch_size=4, gpus=2)
    assert finding.found == '0.002 is meant for 64 images, a step has 16 images (2 x 4 x 2)'
    assert finding.remedy == '--cfg-options optim_wrapper.optimizer.lr=0.0005'
    assert one('learning_rate', 'retinanet', *options, batch_size=16, gpus=2).status == 'ok'


# ------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ('options', 'found'),
    [
        (
            [f'{SCHEDULE}.end=300'],
            'CosineAnnealingLR goes to 300, the training to 10 epochs: it does not get to its end',
        ),
        ([f'{SCHEDULE}.end=8'], 'all end at 8, the training at 10 epochs: after that the rate does not change'),
        (
            [f'{SCHEDULE}._delete_=True', f'{SCHEDULE}.type=MultiStepLR', f'{SCHEDULE}.milestones=[8,16]'],
            'MultiStepLR goes to 16, the training to 10 epochs: it does not get to its end',
        ),
        ([f'{SCHEDULE}.end=10'], None),
    ],
)
def test_schedules_of_another_length(one, options, found):
    finding = one('schedule', 'pvtv2', *options)
    assert (finding.status, finding.found) == (
        ('warning', found) if found else ('ok', 'LinearLR, CosineAnnealingLR within 10 epochs')
    )


def test_a_warm_up_that_is_longer_than_the_training(one):
    """8 scenes, 18 epochs."""
    finding = one('schedule', 'retinanet', batch_size=3, gpus=2)
    assert (finding.status, finding.found.startswith('LinearLR')) == ('ok', True)  # 2 steps an epoch
    finding = one('schedule', 'retinanet', batch_size=4, gpus=2)
    assert finding.found == 'LinearLR goes to 30, the training to 18 iterations: it does not get to its end'


def test_a_training_that_counts_iterations(one):
    loop = ('_delete_=True', 'type=IterBasedTrainLoop', 'max_iters=100')
    options = [f'train_cfg.{word}' for word in loop]
    cosine = [f'{SCHEDULE}.by_epoch=False', f'{SCHEDULE}.convert_to_iter_based=False']
    assert one('schedule', 'pvtv2', *options, *cosine).found == 'LinearLR, CosineAnnealingLR within 100 iterations'
    finding = one('schedule', 'pvtv2', *options, *cosine, f'{SCHEDULE}.end=200')
    assert finding.found.startswith('CosineAnnealingLR goes to 200, the training to 100 iterations')
