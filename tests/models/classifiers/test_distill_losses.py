"""The terms of the distillation loss against computation by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from upvit_mm.pruning import make_plan


def tokens_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Final tokens ``(B, P+N, C)`` of a classifier, by running its stages one by one."""
    for i, stage in enumerate(model.backbone.stages):
        tokens, grid = model.backbone.enter_stage(i, x)
        for block in stage.blocks:
            tokens = block(tokens, grid)
        tokens = stage.norm(tokens)
        if i + 1 < len(model.backbone.stages):
            x = tokens.transpose(1, 2).unflatten(2, grid)
    return tokens


@pytest.mark.parametrize('temperature', [1.0, 2.5])
def test_losses_by_hand(distil, dense, image, temperature, samples):
    distill = dict(
        soft=dict(type='upvit_mm.SoftTargetKL', temperature=temperature),
        feature=dict(type='upvit_mm.FeatureMSE'),
        token=dict(type='upvit_mm.TokenMSE', loss_weight=3.0),
    )
    model, dense, x = distil(distill).double(), dense.double(), image(64, 48).double()
    losses = model(x, samples(2), mode='loss')
    p, q = ((m(x) / temperature).softmax(dim=1) for m in (dense, model))
    features = [m.head.pre_logits(m.extract_feat(x)) for m in (dense, model)]
    tokens = [tokens_of(m, x) for m in (dense, model)]
    assert tokens[0].shape == tokens[1].shape
    expected = dict(
        loss_ce=F.cross_entropy(model(x), torch.tensor([0, 1])),
        loss_soft=0.2 * 32 * temperature**2 * (p * (p.log() - q.log())).sum(dim=1).mean(),
        loss_feature=20 * (features[0] - features[1]).square().mean(),
        loss_token=3 * (tokens[0] - tokens[1]).square().mean(),
    )
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-6), name
    total, logged = model.parse_losses(losses)
    assert total.item() == logged['loss'].item() == pytest.approx(sum(expected.values()).item(), rel=1e-6)


def test_twins_have_nothing_to_learn_from_each_other(distil, dense, image, terms, samples):
    model = distil(terms())
    model.load_state_dict(dense.state_dict())
    losses = model.double().eval()(image(64, 64).double(), samples(2), mode='loss')
    assert losses.pop('loss_ce') > 0.1
    assert {name: value.item() for name, value in losses.items()} == dict.fromkeys(losses, pytest.approx(0, abs=1e-12))


def test_narrower_student_is_compared_on_the_kept_channels(distil, dense, plan, image, terms, samples, plan_path):
    model = distil(terms(plan=str(plan_path)), plan.target_arch.to_dict()).double()
    x, dense = image(64, 64).double(), dense.double()
    losses = model(x, samples(2), mode='loss')
    theirs, ours = (m.head.pre_logits(m.extract_feat(x)) for m in (dense, model))
    assert theirs.shape[1] > ours.shape[1]
    assert losses['loss_feature'].item() == pytest.approx(20 * F.mse_loss(ours, theirs[:, 1::2]).item(), rel=1e-6)
    theirs, ours = (tokens_of(m, x) for m in (dense, model))
    assert losses['loss_token'].item() == pytest.approx(20 * F.mse_loss(ours, theirs[..., 1::2]).item(), rel=1e-6)
    assert not [k for k in model.state_dict() if not k.startswith(('backbone.', 'head.'))]


def test_plans_of_a_schedule_are_followed_in_order(family, distil, plan, tmp_path, terms, plan_path):
    last = f'stages.{plan.target_arch.num_stages - 1}.embed'
    second = make_plan(plan.target_arch, {last: [0, 3, 4]})
    second.save(tmp_path / 'second.json')
    paths = [str(plan_path), str(tmp_path / 'second.json')]
    model = distil(terms('feature', plan=paths), second.target_arch.to_dict())
    assert model.distill_losses['feature'].kept.tolist() == [1, 7, 9]
    with pytest.raises(ValueError, match=r"second.json' prunes \(source_arch\) embed_dims = .*, the teacher has"):
        distil(terms('feature', plan=paths[::-1]), second.target_arch.to_dict())


def test_projector_learns_and_is_saved_apart(distil, plan, image, terms, samples):
    model = distil(terms(projector=True), plan.target_arch.to_dict())
    extra = [k for k in model.state_dict() if not k.startswith(('backbone.', 'head.'))]
    assert extra == [f'distill_losses.{t}.projector.{p}' for t in ('feature', 'token') for p in ('weight', 'bias')]
    model.parse_losses(model(image(64, 64), samples(2), mode='loss'))[0].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_projector_leaves_the_random_numbers_of_the_student_alone(network, family, tiny_arch, dense, dense_path):
    from mmpretrain.registry import MODELS

    parts = network(tiny_arch(family))
    config = dict(type='upvit_mm.DistillClassifier', **parts, teacher=dict(parts, checkpoint=str(dense_path)))
    students = []
    for term in (dict(type='upvit_mm.SoftTargetKL'), dict(type='upvit_mm.FeatureMSE', projector=True)):
        torch.manual_seed(0)
        students.append(MODELS.build(dict(config, distill=dict(term=term))))
        students[-1].init_weights()
    assert torch.equal(*(student.head.fc.weight for student in students))
