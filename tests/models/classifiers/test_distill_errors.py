"""Pairs of student and teacher, and settings, that cannot be: one clear error at build time."""

import pytest
import torch

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning import make_plan


def test_teacher_checkpoint_of_another_arch(family, distil, tiny_arch, terms, network):
    teacher = network(tiny_arch(family, mlp_hidden_dims=77, name='wide'))
    with pytest.raises(ValueError, match=r'does not fit the teacher \(arch=wide, checkpoint=.*dense.pth\): .*fc1'):
        distil(terms('soft'), teacher=teacher)


def test_class_counts_that_differ(family, distil, tiny_arch, terms, network):
    with pytest.raises(ValueError, match=r"dense.pth' has 7 classes: teacher.head.num_classes = 5"):
        distil(terms('soft'), teacher=network(tiny_arch(family), num_classes=5))
    with pytest.raises(ValueError, match=r'teacher.head.num_classes = 7, head.num_classes = 5: must be the same'):
        distil(
            terms('soft'),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=tiny_arch(family)['embed_dims'][-1]),
        )


def test_student_or_teacher_that_the_plan_does_not_know(family, distil, plan, terms, plan_path):
    distill = terms('feature', plan=str(plan_path))
    other = plan.target_arch.to_dict() | dict(mlp_hidden_dims=9)
    with pytest.raises(
        ValueError, match=r'gives \(target_arch\) mlp_hidden_dims = .*, the student has \(\(9,.*\. Give'
    ):
        distil(distill, other)
    make_plan(plan.target_arch, {}).save(plan_path)
    with pytest.raises(ValueError, match=r'prunes \(source_arch\) embed_dims = .*, the teacher has .*projector=True'):
        distil(distill, plan.target_arch.to_dict())
    plan_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"plan.json' does not exist"):
        distil(distill, plan.target_arch.to_dict())


@pytest.mark.parametrize('term', ['feature', 'token'])
def test_widths_that_differ_without_help(distil, plan, term, terms):
    ours, theirs = plan.target_arch.embed_dims[-1], plan.source_arch.embed_dims[-1]
    with pytest.raises(ValueError, match=f'{ours} channels in the student and {theirs} in the teacher; give plan='):
        distil(terms(term), plan.target_arch.to_dict())


WRONG_SETTINGS = {
    'loss_weight = 0': dict(distill=dict(soft=dict(type='upvit_mm.SoftTargetKL', loss_weight=0))),
    'temperature = -1': dict(distill=dict(soft=dict(type='upvit_mm.SoftTargetKL', temperature=-1))),
    'drop one': dict(distill=dict(x=dict(type='upvit_mm.FeatureMSE', plan='plan.json', projector=True))),
    'one term or more': dict(distill={}),
    'none of them named ce': dict(distill=dict(ce=dict(type='upvit_mm.SoftTargetKL'))),
    'must be a DistillLoss': dict(distill=dict(x=dict(type='CrossEntropyLoss'))),
    'student and teacher need a head': dict(teacher=dict(head=None)),
    'distill.soft compares logits: student and teacher need a head': dict(head=None),
    'backbone.type = ResNet: must be one of upvit_mm.UPDeiT, upvit_mm.UPViT, upvit_mm.UPPVTv2': dict(
        backbone=dict(type='ResNet', depth=18)
    ),
    'teacher.backbone.type = ResNet': dict(teacher=dict(backbone=dict(type='ResNet', depth=18))),
    'has pad_value: the teacher gets': dict(teacher=dict(data_preprocessor=dict(pad_value=3))),
}


@pytest.mark.parametrize('message', WRONG_SETTINGS)
def test_wrong_settings(distil, message, terms):
    with pytest.raises(ValueError, match=message):
        distil(**dict(distill=terms('soft')) | WRONG_SETTINGS[message])


def test_teacher_without_head_in_its_file(distil, dense, image, terms, samples, dense_path):
    state = {k: v for k, v in dense.state_dict().items() if k.startswith('backbone.')}
    torch.save(state, dense_path)
    with pytest.raises(ValueError, match=r"dense.pth' has no linear head"):
        distil(terms('soft'))
    model = distil(terms('feature'), teacher=dict(head=None))
    assert model(image(64, 64), samples(2), mode='loss')['loss_feature'] > 0


def test_tokens_of_another_grid(tiny_arch):
    from upvit_mm.models import TokenMSE

    archs = [ArchSpec.from_dict(tiny_arch(family)) for family in ('deit', 'pvtv2')]
    with pytest.raises(
        ValueError, match=r'\(deit at stride 16\) and of the teacher \(pvtv2 at stride 32\) do not match'
    ):
        TokenMSE(projector=True).connect(*archs)
