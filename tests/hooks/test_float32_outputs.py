"""A training step of a detector in bfloat16: operators of mmcv, losses and anchors get float32."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from upvit_mm.compare.contestants import Contestant, with_backbone
from upvit_mm.data.picture_set import PictureSet
from upvit_mm.hooks import Float32Outputs
from upvit_mm.hooks.float32_outputs import parts_of
from upvit_mm.workflow.whole_detector import build_detector


@pytest.fixture
def subject(detector_config, archs, randomise):
    """``subject(family, kind)``: a random detector in training mode, and a batch of two annotated pictures."""

    def make(family: str, kind: str):
        cfg = with_backbone(detector_config(family, kind), Contestant.parse(f'a={archs(family)[0]}'))
        detector = randomise(build_detector(cfg)).train()
        return detector, PictureSet(cfg, detector.data_preprocessor, None, 2, 0, 2, labelled=True)[0]

    return make


def step(detector, batch) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        return detector.parse_losses(detector.loss(batch.images, [sample.clone() for sample in batch.samples]))[0]


@pytest.mark.parametrize(('family', 'kind'), [('dinov2', 'retinanet'), ('dinov3', 'mask-rcnn')])
def test_a_step_in_bfloat16(family, kind, subject, monkeypatch):
    detector, batch = subject(family, kind)
    dense = detector.rpn_head if kind == 'mask-rcnn' else detector.bbox_head
    assert [type(part).__name__ for part in parts_of(detector)] == ['SimpleFeaturePyramid', type(dense).__name__]
    if kind == 'mask-rcnn':
        with pytest.raises(RuntimeError, match='BFloat16'):  # RoIAlign
            step(detector, batch)
    inside, priors = [], []
    dense.register_forward_pre_hook(lambda module, given: inside.extend(given[0]))
    conv = next(module for module in dense.modules() if isinstance(module, torch.nn.Conv2d))
    conv.register_forward_hook(lambda module, given, out: inside.append(out))
    made = dense.prior_generator.grid_priors

    def watch(*given, **settings):
        priors.extend(found := made(*given, **settings))
        return found

    monkeypatch.setattr(dense.prior_generator, 'grid_priors', watch)
    hook, runner = Float32Outputs(), SimpleNamespace(model=detector)
    hook.before_train(runner)
    loss = step(detector, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert {out.dtype for out in inside} == {torch.float32, torch.bfloat16}  # maps; what the head computes from them
    assert {prior.dtype for prior in priors} == {torch.float32}
    gradients = [p.grad for p in detector.backbone.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients)

    with torch.no_grad():
        exact = detector.parse_losses(detector.loss(batch.images, [s.clone() for s in batch.samples]))[0]
    if kind == 'retinanet':  # nothing random in it
        assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    hook.after_train(runner)
    assert not any(part._forward_hooks for part in parts_of(detector))


def test_a_classifier_has_no_such_parts(build):
    assert parts_of(build('deit')) == []
