"""A backbone that follows its teacher's tokens, without a head and without labels."""

from __future__ import annotations

import pytest
import torch
from mmengine.optim import OptimWrapper


@pytest.fixture(params=['dinov2', 'dinov3'])
def family(request) -> str:
    return request.param


@pytest.fixture
def dense(build, family, dense_path):
    backbone = build(family, out_type='cls_token')
    torch.save(backbone.state_dict(), dense_path)
    return backbone


@pytest.fixture
def student(build, family, dense, dense_path, plan, plan_path, tmp_path):
    """Sliced from the dense network by ``plan``."""
    from mmpretrain.registry import MODELS

    from upvit_mm.pruning import slice_state

    state = slice_state({f'backbone.{k}': v for k, v in dense.state_dict().items()}, plan)
    torch.save(state, tmp_path / 'pruned.pth')
    backbone = dict(type='upvit_mm.UPViT', out_type='cls_token')
    model = MODELS.build(
        dict(
            type='upvit_mm.DistillClassifier',
            backbone=dict(backbone, arch=plan.target_arch.to_dict()),
            head=None,
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'pruned.pth')),
            teacher=dict(backbone=dict(backbone, arch=plan.source_arch.to_dict()), checkpoint=str(dense_path)),
            distill=dict(tokens=dict(type='upvit_mm.TokenMSE', loss_weight=2.0, plan=str(plan_path))),
        )
    )
    model.init_weights()
    return model


def tokens(backbone, images) -> torch.Tensor:
    x, grid = backbone.enter_stage(0, images)
    for j in range(len(backbone.stages[0].blocks)):
        x = backbone.run_block(0, j, x, grid)
    return backbone.leave_stage(0, x)


def test_the_loss_is_that_of_all_tokens(student, dense, plan, image):
    """Registers and class token too; nothing asks for labels."""
    from mmpretrain.structures import DataSample

    images = image(64, 64)
    losses = student.loss(images, [DataSample(), DataSample()])
    with torch.no_grad():
        wanted = tokens(dense, images)[..., plan.kept['stages.0.embed']]
        expected = 2 * (tokens(student.backbone, images) - wanted).square().mean()
    assert list(losses) == ['loss_tokens']
    assert losses['loss_tokens'].item() == pytest.approx(expected.item(), rel=1e-5)


def test_it_learns(student, image):
    from mmpretrain.structures import DataSample

    images, before = [*(image(64, 64, batch=4) * 60 + 128).clamp(0, 255)], None
    optimizer = OptimWrapper(torch.optim.AdamW(student.parameters(), lr=1e-3))
    for _ in range(20):
        loss = student.train_step(dict(inputs=images, data_samples=[DataSample()] * 4), optimizer)['loss'].item()
        before = before or loss
    assert loss < 0.85 * before


def test_its_checkpoint_is_a_backbone(student, tmp_path, identical):
    from upvit_mm.checkpoints import load_backbone

    torch.save(student.state_dict(), tmp_path / 'student.pth')
    assert identical(load_backbone(tmp_path / 'student.pth'), student.backbone.state_dict())


def test_posteriors_need_a_head(student, dense_path):
    from mmpretrain.registry import MODELS

    backbone = dict(type='upvit_mm.UPViT', arch=student.backbone.arch.to_dict(), out_type='cls_token')
    teacher = dict(
        backbone=dict(backbone, arch=student.teacher.classifier.backbone.arch.to_dict()), checkpoint=str(dense_path)
    )
    with pytest.raises(ValueError, match=r'distill.soft compares logits: student and teacher need a head\.'):
        MODELS.build(
            dict(
                type='upvit_mm.DistillClassifier',
                backbone=backbone,
                teacher=teacher,
                distill=dict(soft=dict(type='upvit_mm.SoftTargetKL')),
            )
        )
