"""What stands around a backbone in a file: wrappers, averages, a second network, a head."""

import argparse
import itertools
import logging
import pathlib

import pytest
import torch

from upvit_mm.checkpoints import load_backbone, load_classifier, read_checkpoint, to_ours


def prefixed(prefix, state):
    return {f'{prefix}{k}': v for k, v in state.items()}


@pytest.fixture
def networks(tiny_source):
    """The state dicts, head included, of two networks of timm that differ in their values."""
    source = tiny_source('timm-deit')
    first = {k: v.clone() for k, v in (source.state | source.head).items()}
    return first, {k: v + 1 for k, v in first.items()}


@pytest.fixture
def ours(networks):
    """The tensors of both under our names."""
    states = []
    for state in networks:
        backbone = to_ours({k: v for k, v in state.items() if not k.startswith('head')})
        states.append(
            prefixed('backbone.', backbone) | {f'head.fc.{p}': state[f'head.{p}'] for p in ('weight', 'bias')}
        )
    return states


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'x.pth'


# ------------------------------------------------------------------- wrappers

WRAPPERS = ('_orig_mod.', 'module.', 'model.', 'encoder.', 'net.')
NESTED = [
    *WRAPPERS,
    *(a + b for a, b in itertools.product(WRAPPERS, repeat=2)),
    'module.model._orig_mod.module.encoder.',
]


def test_wrappers_come_off_in_any_order_and_depth(networks, ours, path, identical):
    for wrapper in NESTED:
        for content in (prefixed(wrapper, networks[0]), {'model': prefixed(wrapper, networks[0]), 'epoch': 3}):
            torch.save(content, path)
            # as the file has them, wrappers removed one after another, and found without being named
            for prefix in (None, wrapper, wrapper.partition('.')[2] or None):
                assert identical(load_classifier(path, prefix), ours[0]), (wrapper, prefix)


def test_a_wrapped_detector(networks, path, identical):
    backbone = {k: v for k, v in networks[0].items() if not k.startswith('head')}
    for wrapper in NESTED[:12]:
        state = prefixed(f'{wrapper}backbone.', backbone) | {f'{wrapper}bbox_head.w': torch.ones(2)}
        torch.save({'state_dict': state}, path)
        for prefix in (None, 'backbone', f'{wrapper}backbone.', wrapper):
            assert identical(load_backbone(path, prefix), to_ours(backbone)), (wrapper, prefix)


def test_compiled_blocks(networks, ours, path, identical):
    state = {k.replace('blocks.1.', 'blocks.1._orig_mod.'): v for k, v in networks[0].items()}
    torch.save(state, path)
    assert identical(load_classifier(path), ours[0])
    torch.save(state | {'blocks.1.norm1.weight': torch.ones(48)}, path)
    with pytest.raises(ValueError, match=r"twice, with and without .*_orig_mod.*'blocks.1._orig_mod.norm1.weight'"):
        load_backbone(path)


@pytest.mark.parametrize(
    ('backbone', 'head'),
    [
        ('', 'head.'),
        ('', 'fc.'),
        ('module.', 'module.head.'),
        ('model.', 'model.head.fc.'),
        ('encoder.', 'encoder.head.'),
        ('encoder.', 'head.'),
        ('encoder.', 'classifier.'),
        ('backbone.', 'backbone.head.'),
        ('backbone.', 'cls_head.fc.'),
        ('module.backbone.', 'module.head.layers.head.'),
        ('model.backbone.net.', 'model.head.1.'),  # after a dropout
    ],
)
def test_a_head_below_a_prefix_is_a_head(backbone, head, networks, ours, path, identical):
    state = {
        (k.replace('head.', head, 1) if k.startswith('head.') else f'{backbone}{k}'): v for k, v in networks[0].items()
    }
    torch.save({'state_dict': state}, path)
    for prefix in (None, *([backbone] if backbone else [])):
        assert identical(load_classifier(path, prefix), ours[0])
        assert identical(
            prefixed('backbone.', load_backbone(path, prefix)), {k: v for k, v in ours[0].items() if 'head' not in k}
        )


# ------------------------------------------------------------------- averages

MAKERS = {  # what raw weights and averages are kept as; which of them is the default; how they are called in the log
    'timm': (lambda raw, ema: {'arch': 'x', 'state_dict': raw, 'state_dict_ema': ema}, 'ema', 'state_dict_ema', 'timm'),
    'DeiT': (lambda raw, ema: {'model': raw, 'model_ema': ema, 'epoch': 3}, 'raw', 'model_ema', "DeiT's main.py"),
    'RT-DETR': (
        lambda raw, ema: {'model': raw, 'ema': {'module': ema, 'updates': 3, 'warmups': torch.ones(1)}},
        'ema',
        'ema.module',
        'RT-DETR',
    ),
    'FixMatch': (lambda raw, ema: {'state_dict': raw, 'ema_state_dict': ema}, 'ema', 'ema_state_dict', 'FixMatch'),
    'nested': (
        lambda raw, ema: {'model': {'state_dict': raw}, 'model_ema': {'state_dict': prefixed('module.', ema)}},
        'raw',
        'model_ema.state_dict.module',
        'DeiT',
    ),
    'DINO': (
        lambda raw, ema: {'student': prefixed('module.backbone.', raw), 'teacher': prefixed('backbone.', ema)},
        'ema',
        'teacher.backbone',
        'DINO',
    ),
    'mean teacher': (
        lambda raw, ema: {'state_dict': prefixed('student.backbone.', raw) | prefixed('teacher.backbone.', ema)},
        'ema',
        'state_dict.teacher.backbone',
        'SemiBaseDetector',
    ),
    'MoCo v3': (
        lambda raw, ema: {
            'state_dict': prefixed('module.base_encoder.', raw) | prefixed('module.momentum_encoder.', ema)
        },
        'raw',
        'state_dict.module.momentum_encoder',
        'MoCo v3',
    ),
    'Lightning': (
        lambda raw, ema: {'state_dict': prefixed('model.', raw) | prefixed('ema_model.module.', ema)},
        'ema',
        'state_dict.ema_model.module',
        'DINO-DETR',
    ),
    # mmengine's EMAHook exchanges them: the averages are where the weights are looked for
    'mmengine': (
        lambda raw, ema: {'state_dict': ema, 'ema_state_dict': {**prefixed('module.', raw), 'steps': torch.tensor(3)}},
        'ema',
        'state_dict',
        'EMAHook',
    ),
}


@pytest.mark.parametrize('maker', MAKERS)
def test_averages_are_named_and_chosen(maker, networks, ours, path, identical, caplog):
    build, default, label, reason = MAKERS[maker]
    torch.save(build(*networks), path)
    expected = dict(zip(('raw', 'ema'), ours))
    with caplog.at_level(logging.INFO, 'upvit_mm'):
        for weights in (None, 'raw', 'ema'):
            caplog.clear()
            taken = weights or default
            assert identical(load_classifier(path, weights=weights), expected[taken])
            (line,) = (record.getMessage() for record in caplog.records if ': holds ' in record.getMessage())
            assert f'holds averages ({label})' in line
            other = {'raw': 'ema', 'ema': 'raw'}[taken]
            assert f"weights='{other}', or convert_checkpoint.py --weights {other}, takes the others" in line
            assert ('as asked' if weights else reason) in line
    assert identical(
        prefixed('backbone.', load_backbone(path)), {k: v for k, v in expected[default].items() if 'head' not in k}
    )


@pytest.mark.parametrize('maker', ['timm', 'DeiT', 'RT-DETR'])
def test_averages_alone(maker, networks, ours, path, identical, caplog):
    content = MAKERS[maker][0](*networks)
    torch.save({k: v for k, v in content.items() if k not in ('state_dict', 'model')}, path)
    with caplog.at_level(logging.INFO, 'upvit_mm'):
        for weights in (None, 'ema'):
            assert identical(load_classifier(path, weights=weights), ours[1])
    assert f'holds averages ({MAKERS[maker][2]}); takes' in caplog.text
    with pytest.raises(ValueError, match=r"weights = 'raw': .* holds no weights but averages, it has averages \("):
        load_classifier(path, weights='raw')


def test_weights_that_are_not_there(networks, ours, path, identical, caplog):
    torch.save({'state_dict': networks[0], 'state_dict_ema': None}, path)
    assert identical(load_classifier(path, weights='raw'), ours[0])
    assert ': holds ' not in caplog.text
    with pytest.raises(
        ValueError, match=r"weights = 'ema': .* holds no averages, it has weights \(state_dict\); leave"
    ):
        load_classifier(path, weights='ema')
    with pytest.raises(ValueError, match=r"weights = 'mean': must be one of ema, raw"):
        load_classifier(path, weights='mean')


def test_optimizers_and_losses_are_no_weights(networks, ours, path, identical, caplog):
    state = {'state': {0: {'exp_avg': torch.ones(3)}}, 'param_groups': []}
    content = {
        'model': networks[0],
        'optimizer': state,
        'scaler': {'scale': torch.ones(1)},
        'loss': {'center': torch.ones(2)},
    }
    torch.save(content, path)
    with caplog.at_level(logging.INFO, 'upvit_mm'):
        assert identical(load_classifier(path), ours[0])
    assert not caplog.records


def test_arguments_beside_the_weights(networks, ours, path, identical):
    """As timm and DeiT keep them; nothing of them is built."""
    args = argparse.Namespace(model='deit_tiny', output=pathlib.PurePosixPath('x'), folder=pathlib.Path('y'), lr=0.1)
    del args.output
    torch.save({'model': networks[0], 'args': args}, path)
    assert identical(load_classifier(path), ours[0])
    assert not isinstance(read_checkpoint(path)['args'], argparse.Namespace)


# --------------------------------------------------------- several backbones


def test_two_networks_are_not_guessed_at(networks, build, path, identical):
    """Student and teacher of other widths: no average."""
    student = build('pvtv2').state_dict()
    torch.save({'state_dict': prefixed('student.', student) | prefixed('teacher.', networks[0])}, path)
    refused = (
        r'holds 2 backbones, averages \(state_dict.teacher\) and raw weights \(state_dict.student\): choose one with '
    )
    with pytest.raises(ValueError, match=refused + "prefix, or weights='ema' or 'raw'"):
        load_backbone(path)
    for choice in (dict(prefix='student'), dict(weights='raw')):
        assert identical(load_backbone(path, **choice), student)
    for choice in (dict(prefix='teacher.'), dict(prefix='state_dict.teacher'), dict(weights='ema')):
        assert len(load_backbone(path, **choice)) == 54


def test_a_teacher_without_a_student_is_another_network(networks, ours, path, identical):
    """As distillation leaves it beside the network that was trained; of the same widths, too."""
    torch.save({'state_dict': prefixed('backbone.', networks[0]) | prefixed('teacher.backbone.', networks[1])}, path)
    assert identical(load_classifier(path), ours[0])
    assert identical(load_classifier(path, weights='ema'), ours[1])
    torch.save({'model': networks[0], 'teacher': networks[1]}, path)
    with pytest.raises(ValueError, match=r'holds 2 backbones, averages \(teacher\) and raw weights \(model\): choose'):
        load_classifier(path)


def test_two_networks_of_one_kind(networks, path, identical, ours):
    torch.save({'state_dict': prefixed('left.', networks[0]) | prefixed('right.', networks[1])}, path)
    with pytest.raises(
        ValueError, match=r'holds 2 backbones, weights \(state_dict.left, state_dict.right\): .* prefix\.$'
    ):
        load_classifier(path)
    assert identical(load_classifier(path, 'right'), ours[1])


def test_the_one_named_backbone_is_meant(networks, path, ours, identical, caplog):
    """A detector with a second transformer beside its backbone."""
    torch.save({'state_dict': prefixed('backbone.', networks[0]) | prefixed('text.', networks[1])}, path)
    with caplog.at_level(logging.INFO, 'upvit_mm'):
        assert identical(load_classifier(path, weights='raw'), ours[0])
    assert (
        'holds weights (state_dict.backbone, state_dict.text); takes state_dict.backbone (named backbone)'
        in caplog.text
    )


def test_a_backbone_of_an_unknown_layout_is_not_passed_over(networks, path):
    """Another network of the file, whose layout is known, is not what was trained."""
    torch.save({'state_dict': {'backbone.conv1.weight': torch.ones(2)} | prefixed('text.', networks[0])}, path)
    with pytest.raises(ValueError, match=r'layout not recognised: conv1.weight'):
        load_backbone(path)
    assert len(load_backbone(path, 'text')) == 54


def test_stages_of_another_network_are_no_backbones(path):
    """Swin's blocks have DeiT's names in each of its stages."""
    names = [f'layers.{i}.blocks.0.attn.qkv.weight' for i in range(4)] + ['patch_embed.proj.weight']
    torch.save({'model': {name: torch.ones(3, 3) for name in names}}, path)
    with pytest.raises(ValueError, match=r'layout not recognised: layers.0.blocks.0.attn.qkv.weight'):
        load_backbone(path)
