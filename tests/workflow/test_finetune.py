"""Configs that are derived: what a recipe teaches, and the dense network inside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from upvit_mm.arch import get_arch
from upvit_mm.workflow.finetune import check_dense_config, classifier, taught, training, without_teacher
from upvit_mm.workflow.lesson import Lesson

RECIPES = Path(__file__).parents[2] / 'configs/classification'
SOFT = dict(type='upvit_mm.SoftTargetKL', loss_weight=2.0, temperature=3.0)
TOKEN = dict(type='upvit_mm.TokenMSE')


def test_lesson_of_a_config():
    assert Lesson.of({'a': SOFT, 'b': TOKEN}) == Lesson(soft=2.0, temperature=3.0, token=20.0)
    assert Lesson.of({'b': dict(TOKEN, type='upvit_mm.FeatureMSE')}) == Lesson(soft=0.0, feature=20.0)
    for wrong in ({'a': SOFT, 'b': SOFT}, {'a': dict(type='ReLU')}):
        with pytest.raises(ValueError, match='each of SoftTargetKL, FeatureMSE, TokenMSE at most once, and no other'):
            Lesson.of(wrong)


@pytest.mark.parametrize('name', ['up-deit-tiny_8xb32_in1k', 'up-pvtv2-b0_8xb128_in1k'])
def test_the_teacher_of_a_recipe_and_back(name):
    """The dense network trains as the recipe does; taught by itself, it is the recipe's student of another width."""
    recipe = Config.fromfile(RECIPES / f'{name}.py')
    source = get_arch(recipe.model.teacher.backbone.arch)
    cfg = without_teacher(recipe)
    check_dense_config(cfg)
    assert without_teacher(cfg) is cfg
    assert recipe.model.type == 'upvit_mm.DistillClassifier'
    assert cfg.model.backbone.arch == source.to_dict()
    assert cfg.model.head.in_channels == source.embed_dims[-1]
    for part in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'custom_hooks'):
        assert cfg[part] == recipe[part]

    lesson = Lesson.of(recipe.model.distill)
    plans = [Path('first/plan.json'), Path('second/plan.json')]
    target = get_arch(recipe.arch['name'])
    model = taught(classifier(cfg, target, Path('pruned.pth')), cfg, Path('dense.pth'), lesson, plans)
    assert model.backbone == dict(recipe.model.backbone, arch=target.to_dict())
    assert model.head == dict(recipe.model.head, in_channels=target.embed_dims[-1])
    assert model.train_cfg == recipe.model.train_cfg
    assert model.teacher.head.in_channels == recipe.model.teacher.head.in_channels
    for term, theirs in recipe.model.distill.items():
        ours = model.distill[term]
        assert (ours.type, ours.loss_weight) == (theirs.type, theirs.loss_weight)
        assert ours.get('plan', list(map(str, plans))) == list(map(str, plans))


def test_a_teacher_with_its_own_preprocessing_is_refused():
    recipe = Config.fromfile(RECIPES / 'up-deit-tiny_8xb32_in1k.py')
    recipe.model.teacher.data_preprocessor = dict(mean=[0.0] * 3)
    with pytest.raises(ValueError, match=r"teacher.data_preprocessor: the dense network's own"):
        without_teacher(recipe)


def test_schedules_by_epochs_move_with_the_epochs():
    cfg = Config.fromfile(RECIPES / 'up-pvtv2-b0_8xb128_in1k.py')
    steps = dict(type='MultiStepLR', milestones=[60, 140], by_epoch=True)
    cfg.param_scheduler = [dict(cfg.param_scheduler[0], end=20), steps, dict(type='LinearLR', by_epoch=False, end=500)]
    run = training(without_teacher(cfg), cfg.model, 50, seed=3, lr=0.1)
    assert run.train_cfg.max_epochs == 50  # of 200
    assert [s.get('milestones', s.get('end')) for s in run.param_scheduler] == [5, [15, 35], 500]
    assert cfg.param_scheduler[1].milestones == [60, 140]
