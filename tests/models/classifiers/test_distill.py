"""DistillClassifier: what its teacher is no part of, what it sees, what steps change."""

import copy
import pickle

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn


def seen_by(model: nn.Module) -> list[torch.Tensor]:
    """Filled with the images that a network gets."""
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return seen


# ------------------------------------------------------ beside, not within


def test_teacher_is_no_part_of_the_model(family, distil, classifier, tiny_arch, dense, identical, terms):
    model, plain = distil(terms()), classifier(family, tiny_arch(family))
    assert model.state_dict().keys() == plain.state_dict().keys()
    theirs = {id(p) for p in model.teacher.parameters()}
    assert len(theirs) == len(plain.state_dict())
    assert not theirs & {id(p) for p in model.parameters()}
    assert not any(module in list(model.teacher.modules()) for module in model.modules())
    optimizer = build_optim_wrapper(model, dict(optimizer=dict(type='AdamW'))).optimizer
    assert not theirs & {id(p) for group in optimizer.param_groups for p in group['params']}
    assert identical(model.teacher.classifier.state_dict(), dense.state_dict())


def test_copies_leave_the_teacher_behind(family, distil, classifier, tiny_arch, terms):
    model, plain = distil(terms('soft')), classifier(family, tiny_arch(family))
    for copied in (copy.deepcopy(model), ExponentialMovingAverage(model).module, pickle.loads(pickle.dumps(model))):
        assert copied.teacher is None
        assert copied.state_dict().keys() == plain.state_dict().keys()
        assert len(pickle.dumps(copied)) < 1.05 * len(pickle.dumps(plain))
    assert model.teacher is not None


def test_teacher_follows_moves_and_casts_but_not_modes(distil, terms, pixels):
    model = distil(terms('soft'), teacher=dict(data_preprocessor=pixels))
    for move in (nn.Module.double, nn.Module.half, lambda m: m.to(torch.bfloat16), lambda m: m.to('meta')):
        move(model)
        expected = next(model.parameters())
        tensors = [*model.teacher.parameters(), model.teacher.scale, model.teacher.shift]
        assert {(t.dtype, t.device) for t in tensors} == {(expected.dtype, expected.device)}
    model.train().requires_grad_(True)
    assert not any(m.training for m in model.teacher.modules())
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_building_a_teacher_draws_no_random_numbers(distil, terms):
    def next_number(**settings) -> float:
        torch.manual_seed(0)
        distil(terms(), **settings)
        return torch.rand(1).item()

    assert next_number() == next_number(teacher=None)


def test_without_teacher_for_evaluation_only(distil, dense, image, terms, samples):
    model, x = distil(terms('soft'), teacher=None).eval(), image(64, 64)
    model.load_state_dict(dense.state_dict())
    assert torch.equal(model(x), dense(x))
    with pytest.raises(ValueError, match='teacher = None: this model can only be evaluated'):
        model(x, samples(2), mode='loss')


# ----------------------------------------------------------- what it sees


def test_cutmix_the_teacher_sees_the_very_tensor(distil, terms, pixels, samples, batch):
    augments = dict(augments=dict(type='CutMix', alpha=1.0), probs=1.0)
    model = distil(terms('soft'), data_preprocessor=dict(num_classes=7, batch_augments=augments, **pixels)).train()
    ours, theirs = seen_by(model), seen_by(model.teacher.classifier)
    data = batch()
    plain = model.data_preprocessor(dict(inputs=data['inputs'], data_samples=samples(4)), False)['inputs']
    model.train_step(data, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
    assert ours[0] is theirs[0]
    assert not torch.equal(ours[0], plain)


@pytest.mark.parametrize('to_rgb', [True, False])
def test_own_preprocessing(distil, distance, to_rgb, terms, pixels, batch):
    from mmpretrain.models import ClsDataPreprocessor

    own = dict(mean=[127.5, 100.0, 90.0], std=[127.5, 60.0, 50.0], to_rgb=to_rgb)
    model = distil(terms('soft'), data_preprocessor=dict(pixels), teacher=dict(data_preprocessor=own))
    theirs = seen_by(model.teacher.classifier)
    data = batch()
    model(**model.data_preprocessor(dict(data), True), mode='loss')
    assert distance(theirs[0], ClsDataPreprocessor(**own)(dict(data))['inputs']) < 1e-6


def test_same_preprocessing_passes_the_tensor_on(distil, image, terms, pixels, samples):
    model = distil(terms('soft'), data_preprocessor=dict(pixels), teacher=dict(data_preprocessor=pixels))
    ours, theirs = seen_by(model), seen_by(model.teacher.classifier)
    model(image(64, 64), samples(2), mode='loss')
    assert ours[0] is theirs[0]


# ---------------------------------------------------------------- steps


def test_steps_change_the_student_alone(distil, dense, identical, terms, batch):
    model = distil(terms()).train()
    before = copy.deepcopy(model.state_dict())
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.01))
    first = {name: value.item() for name, value in model.train_step(batch(), wrapper).items()}
    for _ in range(3):
        logged = model.train_step(batch(), wrapper)
    assert list(logged) == ['loss', 'loss_ce', 'loss_soft', 'loss_feature', 'loss_token']
    assert logged['loss'] < first['loss']
    assert not any(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert identical(model.teacher.classifier.state_dict(), dense.state_dict())
    assert all(p.grad is None for p in model.teacher.parameters())


def test_bfloat16_autocast(distil, plan, image, terms, samples):
    model, x = distil(terms(projector=True), plan.target_arch.to_dict()), image(64, 64)
    expected = model(x, samples(2), mode='loss')
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(x, samples(2), mode='loss')
    sum(losses.values()).backward()
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name].item(), rel=0.1, abs=0.05), name
    assert all(p.grad.isfinite().all() for p in model.parameters())
