"""What a run may start from without resuming: whole models in tests, at least our backbone in trainings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from upvit_mm.hooks.load_check import _load_fitting, _misfits


def prefixed(prefix, state):
    return {f'{prefix}{k}': v for k, v in state.items()}


# ----------------------------------------------------------------- in tests


def test_a_file_that_fits_is_loaded_and_nothing_is_said(model, load, identical):
    for kind in ('detector', 'deit', 'pvtv2'):
        source, target = model(kind), model(kind, seed=1)
        for part in ('test', 'val', 'train'):
            assert load(target, {'state_dict': source.state_dict()}, part) == []
            assert identical(target.state_dict(), source.state_dict())


CHANGES = {
    'missing': (lambda state, keys: {k: v for k, v in state.items() if k not in keys}, '{} is missing'),
    'extra': (lambda state, keys: state | {f'{k}x': state[k] for k in keys}, '{}x is not in the model'),
    'of another shape': (
        lambda state, keys: state | {k: torch.ones(99) for k in keys},
        r'{} has shape \(99,\), the model \(',
    ),
}


@pytest.mark.parametrize('kind', CHANGES)
@pytest.mark.parametrize('part', ['backbone', 'neck', 'bbox_head'])
def test_tests_refuse_what_does_not_fit_in_any_part(kind, part, model, load):
    change, words = CHANGES[kind]
    state = model('detector').state_dict()
    keys = [k for k in state if k.startswith(f'{part}.')][:7]
    number = len(keys)
    with pytest.raises(ValueError, match=rf'{number} tensors are .*\(the model has {len(state)}\), in ') as info:
        load(model('detector'), {'state_dict': change(state, keys)})
    message = str(info.value)
    assert f"x.pth' does not fit the model of the config: {number} tensors" in message
    assert f'in {part}: {number} {kind}: ' in message
    first = [words.format(key).replace('\\', '') for key in keys]
    assert all(text in message for text in first[:5])
    assert not any(text in message for text in first[5:])
    assert 'Use the config that the file was trained with; tools/test.py --allow-missing PREFIX' in message


def test_a_head_of_other_classes(model, load):
    """Case of a detector of three classes under a config of two."""
    source = model('detector', **{'bbox_head.num_classes': 3})
    target = model('detector', **{'bbox_head.num_classes': 2})
    with pytest.raises(ValueError, match=r'2 tensors are .*, in bbox_head: 2 of another shape: bbox_head.retina_cls'):
        load(target, {'state_dict': source.state_dict()})


def test_what_may_be_missing_is_named(model, load):
    source, target = model('detector', **{'bbox_head.num_classes': 3}), model('detector', seed=1)
    own = {k: v.clone() for k, v in target.state_dict().items()}
    state = {k: v for k, v in source.state_dict().items() if not k.startswith('neck.fpn_convs.')}
    (first, second) = load(target, {'state_dict': state}, allow_missing=['bbox_head', 'neck.fpn_convs'])
    shown = 'bbox_head.retina_cls.weight, bbox_head.retina_cls.bias'
    assert first == f'--allow-missing bbox_head: 2 tensors are missing or of another shape and stay random: {shown}.'
    assert second.startswith(
        '--allow-missing neck.fpn_convs: 6 tensors are missing or of another shape and stay random: '
    )
    random = {k for k in own if 'retina_cls' in k or k.startswith('neck.fpn_convs.')}
    for key, value in target.state_dict().items():
        assert torch.equal(value, own[key] if key in random else source.state_dict()[key])
    with pytest.raises(ValueError, match=r'6 tensors are missing.*, in neck: 6 missing'):
        load(target, {'state_dict': state}, allow_missing=['bbox_head'])
    with pytest.raises(
        ValueError, match=r'--allow-missing box: the model has no such part; it has backbone, neck, bbox'
    ):
        load(target, {'state_dict': state}, allow_missing=['box'])
    (line,) = load(target, {'state_dict': source.state_dict() | {}}, allow_missing=['bbox_head', 'backbone'])[1:]
    assert line == '--allow-missing backbone: ignored, all tensors are in the checkpoint.'


def test_a_backbone_may_be_missing_when_asked(model, load, identical):
    target = model('pvtv2')
    before = {k: v.clone() for k, v in target.state_dict().items()}
    state = {k: v for k, v in target.state_dict().items() if not k.startswith('backbone.stages.3.norm')}
    assert len(load(target, {'state_dict': state}, allow_missing=['backbone.stages.3.norm'])) == 1
    assert identical(target.state_dict(), before)


def test_what_changes_no_prediction_may_differ(model, load):
    source = model('pvtv2')
    extra = ('data_preprocessor.mean', 'neck.bn.num_batches_tracked', 'ema_backbone_norm', 'distill_losses.f.weight')
    state = source.state_dict() | {k: torch.ones(1) for k in (*extra, 'teacher.head.weight')}
    assert load(model('pvtv2', seed=1), {'state_dict': state}) == []
    with pytest.raises(ValueError, match=r'1 tensors are .*: student.w is not in the model'):
        load(model('pvtv2', seed=1), {'state_dict': state | {'student.w': torch.ones(1)}})


def test_test_time_augmentation_is_no_part_of_the_names(model, load, identical):
    from mmdet.models import DetTTAModel

    source, target = model('detector'), model('detector', seed=1)
    assert load(DetTTAModel(module=target), {'state_dict': source.state_dict()}) == []
    assert identical(target.state_dict(), source.state_dict())


def test_models_without_a_backbone_of_ours(load, identical):
    class Net(nn.Sequential):
        pass

    source, target = Net(nn.Linear(2, 3)), Net(nn.Linear(2, 3))
    for content in (source.state_dict(), {'state_dict': prefixed('module.model.', source.state_dict())}):
        assert load(target, dict(content)) == []
        assert identical(target.state_dict(), source.state_dict())
    with pytest.raises(ValueError, match=r'3 tensors are .*, in 0: 2 missing, other: 1 extra: 0.weight is missing'):
        load(target, {'other.w': torch.ones(1)}, 'train')  # nothing of it fits


def test_modules_that_know_older_names_of_theirs():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def _load_from_state_dict(self, state_dict, prefix, *args):
            if f'{prefix}old' in state_dict:
                state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}old')
            super()._load_from_state_dict(state_dict, prefix, *args)

    model = nn.ModuleDict({'a': Renamed(), 'b': nn.Linear(1, 1)})
    state = {'a.old': torch.ones(2), 'b.weight': torch.ones(1, 1), 'c': torch.ones(1)}
    found = _load_fitting(model, state, _misfits(state, model.state_dict()))
    assert [m.detail for m in found] == ['b.bias is missing', 'c is not in the model']
    assert torch.equal(model['a'].weight, torch.ones(2))


# ------------------------------------------------------------- in trainings


def test_training_warns_in_one_line_about_other_parts(model, load):
    source = model('detector', **{'bbox_head.num_classes': 3})
    target = model('detector', seed=1)
    own = {k: v.clone() for k, v in target.state_dict().items()}
    state = {k: v for k, v in source.state_dict().items() if not k.startswith('neck.lateral_convs.0.')}
    (line,) = load(target, {'state_dict': state | {'mask_head.w': torch.ones(1)}}, 'train')
    assert line.endswith(
        'x.pth: 5 tensors do not load, and the parts that lack them start at random (bbox_head: 2 of another shape, '
        'neck: 2 missing, mask_head: 1 extra). This is right for heads that learn other classes.'
    )
    for key, value in target.state_dict().items():
        missing = 'retina_cls' in key or key.startswith('neck.lateral_convs.0.')
        assert torch.equal(value, own[key] if missing else source.state_dict()[key])


@pytest.mark.parametrize('change', CHANGES)
def test_the_backbone_must_fit_in_trainings_too(change, model, load):
    state = model('detector').state_dict()
    keys = ['backbone.stages.0.norm.weight']
    with pytest.raises(
        ValueError, match=r'does not fit backbone \(checkpoint=.*x.pth\): 1 tensors are .*: stages.0.norm'
    ):
        load(model('detector'), {'state_dict': CHANGES[change][0](state, keys)}, 'train')


def test_a_classifier_lends_its_backbone(model, load, tiny_source):
    source = tiny_source('timm-pvtv2')
    (line,) = load(model('detector').double(), source.state | source.head, 'train')
    assert '(neck: ' in line
    assert 'head: 2 extra' in line


def test_a_file_without_the_heads_is_no_file_to_test(model, load, tiny_source):
    """A classifier's, and that of another detector: what is random would be scored."""
    source = tiny_source('timm-pvtv2')
    with pytest.raises(ValueError, match=r'does not fit the model of the config: .*bbox_head: \d+ missing'):
        load(model('detector').double(), source.state | source.head)
    other = {k.replace('bbox_head.', 'roi_head.bbox_head.'): v for k, v in model('detector').state_dict().items()}
    heads = sum(k.startswith('roi_head.') for k in other)
    with pytest.raises(ValueError, match=rf'in bbox_head: {heads} missing, roi_head: {heads} extra'):
        load(model('detector'), {'state_dict': other})
