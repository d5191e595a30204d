"""What can be exported, and what is said when it cannot."""

from __future__ import annotations

import sys

import pytest
import torch

from upvit_mm.choices import EXPORTED
from upvit_mm.export import load_part, write_onnx


def test_a_part_that_the_config_does_not_have(classifier, detector):
    with pytest.raises(ValueError, match=r"digits.py' has no neck to export: .* a config of mmdet with model\.neck"):
        load_part('neck', *classifier[1:])
    with pytest.raises(ValueError, match=r"coco.py' has no classifier to export: .* a config of mmpretrain"):
        load_part('classifier', *detector[1:])


@pytest.mark.parametrize('wrapper', ['module.', '_orig_mod.'])
def test_neck_of_a_wrapped_detector(detector, wrapper):
    """As torch's DataParallel and torch.compile save it."""
    state = torch.load(detector.checkpoint, weights_only=True)['state_dict']
    torch.save({'state_dict': {f'{wrapper}{name}': value for name, value in state.items()}}, detector.checkpoint)
    loaded = load_part('neck', *detector[1:]).model.neck.state_dict()
    assert all(torch.equal(value, state[f'neck.{name}']) for name, value in loaded.items())


def test_neck_that_the_checkpoint_does_not_have(detector):
    state = {f'backbone.{k}': v for k, v in detector.model.backbone.state_dict().items()}
    torch.save(state, detector.checkpoint)
    load_part('backbone', *detector[1:])
    with pytest.raises(ValueError, match=r'checkpoint does not fit the neck of .*coco.py .* is missing'):
        load_part('neck', *detector[1:])


def test_head_that_the_checkpoint_does_not_have(classifier):
    torch.save(classifier.model.backbone.state_dict(), classifier.checkpoint)
    with pytest.raises(ValueError, match=r'does not fit the classifier of .*head\.fc\.weight is missing'):
        load_part('classifier', *classifier[1:])


@pytest.mark.parametrize('family', ['pvtv2'])
def test_backbones_and_checkpoints_of_others(classifier):
    with pytest.raises(ValueError, match=r"model\.backbone\.type = 'ResNet' in .*: must be a backbone of this"):
        load_part('backbone', classifier.config, classifier.checkpoint, {'model.backbone.type': 'ResNet'})
    for kind in EXPORTED:
        with pytest.raises(ValueError, match='checkpoint does not fit UPPVTv2'):
            load_part(kind, classifier.config, classifier.checkpoint)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_missing_packages_are_named_with_the_command(classifier, tmp_path, monkeypatch):
    part = load_part('backbone', *classifier[1:])
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'ONNX export needs onnxruntime: pip install "onnx.*" "onnxruntime.*"'):
        write_onnx(part, tmp_path / 'model.onnx', [(64, 64)])
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match='needs onnx and onnxruntime: '):
        write_onnx(part, tmp_path / 'model.onnx', [(64, 64)])
