"""The recipes of fine-tuning by distillation: what they promise, and one of them at work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from upvit_mm.arch import ArchSpec, get_arch

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / 'configs/classification').glob('up-*.py'))
DEMOS = sorted((ROOT / 'configs/demo').glob('up-*_distil_digits.py'))
TOP1 = {'deit-tiny': '75.79', 'deit-small': '81.56', 'pvtv2-b0': '75.30', 'pvtv2-b1': '79.48'}
SCHEDULE = ROOT / 'configs/_base_/schedules/imagenet_distil.py'


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize('path', RECIPES, ids=name_of)
def test_imagenet_recipe(path):
    """What the configs promise in their docstrings, and what pruning leaves for them."""
    cfg, text = Config.fromfile(path), path.read_text()
    arch, is_deit = ArchSpec.from_dict(cfg.arch), 'deit' in path.name
    assert arch == get_arch(arch.name)
    assert f'{TOP1[arch.name]} % top-1' in text
    assert 'We have not run it on ImageNet.' in text
    assert 'estimated' in text

    pruning = Config.fromfile(ROOT / f'configs/pruning/up-{arch.name}_from-{cfg.model.teacher.backbone.arch}_in1k.py')
    folder = Path(f'work_dirs/up-{arch.name}_from-{cfg.model.teacher.backbone.arch}_in1k')
    assert pruning.prune.target == arch.name
    assert cfg.model.teacher.checkpoint in Path(pruning.filename).read_text()
    assert cfg.model.init_cfg == dict(type='Pretrained', checkpoint=str(folder / 'pruned.pth'))
    assert cfg.model.type == 'upvit_mm.DistillClassifier'
    assert 'in_channels' not in cfg.model.head  # follows --cfg-options model.backbone.arch=arch.json
    assert cfg.model.teacher.head.in_channels == get_arch(cfg.model.teacher.backbone.arch).embed_dims[-1]
    if is_deit:
        assert cfg.model.distill == dict(soft=dict(type='upvit_mm.SoftTargetKL', loss_weight=6.4))
    else:
        plan = str(folder / 'plan.json')
        assert cfg.model.distill == dict(feature=dict(type='upvit_mm.FeatureMSE', loss_weight=20.0, plan=plan))

    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=1e-3 if is_deit else 0.05)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.optimizer) == ('AmpOptimWrapper', optimizer)
    assert cfg.train_cfg.max_epochs == 200
    gpus, images = 8, cfg.train_dataloader.batch_size
    assert path.stem.endswith(f'{gpus}xb{images}_in1k')
    assert cfg.auto_scale_lr.base_batch_size == gpus * images == (256 if is_deit else 1024)
    assert cfg.model.backbone.drop_path_rate == 0.1
    assert cfg.model.train_cfg.augments == dict(type='upvit_mm.data.cutmix.UPCutMix', alpha=0.5)
    assert cfg.model.head.loss == dict(type='CrossEntropyLoss', use_soft=True)


@pytest.mark.parametrize('path', RECIPES, ids=name_of)
def test_data_and_hooks(path):
    cfg = Config.fromfile(path)
    assert [step.type for step in cfg.train_dataloader.dataset.pipeline] == [
        'LoadImageFromFile',
        'RandomResizedCrop',
        'RandomFlip',
        'PackInputs',
    ]
    for part in ('train', 'val'):
        dataset = cfg[f'{part}_dataloader'].dataset
        assert (dataset.type, dataset.data_root, dataset.split) == ('ImageNet', 'data/imagenet', part)
    ours = [dict(type=f'upvit_mm.{name}') for name in ('StopOnNonFiniteLoss', 'SeedEveryEpoch')]
    assert cfg.custom_hooks == [dict(type='upvit_mm.ImageEMAHook', momentum=1e-4), *ours]
    assert not cfg.train_dataloader.persistent_workers
    cfg.merge_from_dict({'custom_hooks.0.type': 'upvit_mm.EpochEMAHook', 'custom_hooks.0.momentum': 0.001})
    assert cfg.custom_hooks[0] == dict(type='upvit_mm.EpochEMAHook', momentum=0.001)
    assert 'custom_hooks.0.type=upvit_mm.EpochEMAHook custom_hooks.0.momentum=0.001' in SCHEDULE.read_text()


class Numbers(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.ones(1)


class Line(BaseModel):
    """Notes the learning rate of every step."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 1)
        self.rates = []

    def train_step(self, data, optim_wrapper):
        self.rates.append(optim_wrapper.get_lr()['lr'][0])
        return super().train_step(data, optim_wrapper)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.fc(inputs).square().mean())

    def _run_forward(self, data, mode):
        return self(torch.stack(data), mode=mode)


@pytest.mark.parametrize('epochs', [3, 7])
def test_the_cosine_ends_at_zero(epochs, tmp_path):
    cfg = Config.fromfile(SCHEDULE)
    runner = Runner(
        Line(),
        str(tmp_path),
        train_dataloader=dict(
            dataset=Numbers(), batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        train_cfg=dict(cfg.train_cfg, max_epochs=epochs),
        optim_wrapper=dict(optimizer=cfg.optim_wrapper.optimizer),
        param_scheduler=cfg.param_scheduler,
        experiment_name=f'cosine_{epochs}',
        log_level='ERROR',
    )
    runner.train()
    rates = runner.model.rates
    assert len(rates) == 40 * epochs
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == pytest.approx(1e-3, rel=0.01)
    assert rates.index(max(rates)) in (79, 80)  # at the end of two epochs
    assert rates[-1] < 2e-6


def test_a_recipe_takes_a_step(tmp_path, scope):
    """UP-PVTv2-B0 from a random B2: pruned, loaded with its head, taught through the plan on a mixed batch."""
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    from upvit_mm.pruning import plan_for_target, slice_state
    from upvit_mm.pruning.baselines import random_scores

    cfg = Config.fromfile(ROOT / 'configs/classification/up-pvtv2-b0_8xb128_in1k.py')
    scope('mmpretrain')
    model, source = cfg.model, get_arch('pvtv2-b2')
    dense = MODELS.build({'type': 'ImageClassifier', **{k: model.teacher[k] for k in ('backbone', 'neck', 'head')}})
    blocks = [[(j, j) for j in range(2)]] * 4
    plan = plan_for_target(source, get_arch('pvtv2-b0'), random_scores(source, 0), 'within', False, blocks)
    plan.save(tmp_path / 'plan.json')
    sliced = slice_state(dense.state_dict(), plan)
    for name, state in (('dense', dense.state_dict()), ('pruned', sliced)):
        torch.save({'state_dict': state}, tmp_path / f'{name}.pth')
    model.teacher.checkpoint = str(tmp_path / 'dense.pth')
    model.init_cfg.checkpoint = str(tmp_path / 'pruned.pth')
    model.distill.feature.plan = str(tmp_path / 'plan.json')
    model.data_preprocessor = dict(type='ClsDataPreprocessor', **cfg.data_preprocessor)
    student = MODELS.build(model)
    student.init_weights()
    assert all(torch.equal(value, sliced[key]) for key, value in student.state_dict().items())
    assert [type(augment).__name__ for augment in student.data_preprocessor.batch_augments.augments] == ['UPCutMix']

    images = list(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    data = dict(inputs=images, data_samples=[DataSample().set_gt_label(k) for k in range(2)])
    losses = student(**student.data_preprocessor(data, training=True), mode='loss')
    assert set(losses) == {'loss_ce', 'loss_feature'}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize('path', DEMOS, ids=name_of)
def test_demo_with_the_files_of_a_pruning(path, tmp_path, scope):
    """The two options of the docstring bring the pruned network, head included."""
    from mmpretrain.registry import MODELS

    from upvit_mm.pruning import plan_for_target, slice_state
    from upvit_mm.pruning.baselines import random_scores

    cfg = Config.fromfile(path)
    text = path.read_text()
    assert 'model.backbone.arch=DIR/arch.json model.init_cfg.checkpoint=DIR/pruned.pth' in text
    scope('mmpretrain')
    parts = ('backbone', 'neck', 'head')
    dense = MODELS.build({'type': 'ImageClassifier', **{k: v for k, v in cfg.model.teacher.items() if k in parts}})
    source = ArchSpec.from_dict(cfg.arch)
    target = source.with_widths({'embed_dims': [w - 4 for w in source.embed_dims], 'mlp_hidden_dims': 32})
    plan = plan_for_target(source, target, random_scores(source, 0))
    target.save_json(tmp_path / 'arch.json')
    sliced = slice_state(dense.state_dict(), plan)
    for name, state in (('dense', dense.state_dict()), ('pruned', sliced)):
        torch.save({'state_dict': state}, tmp_path / f'{name}.pth')
    options = {'backbone.arch': 'arch.json', 'init_cfg.checkpoint': 'pruned.pth', 'teacher.checkpoint': 'dense.pth'}
    cfg.merge_from_dict({f'model.{key}': str(tmp_path / file) for key, file in options.items()})
    student = MODELS.build(cfg.model)
    student.init_weights()
    assert all(torch.equal(value, sliced[key]) for key, value in student.state_dict().items())
    assert student.teacher.classifier.backbone.arch == source

    cfg.model.backbone.arch = source.to_dict()
    wrong = MODELS.build(cfg.model)
    with pytest.raises(ValueError, match=r'does not fit the student \(checkpoint=.*pruned.pth\)'):
        wrong.init_weights()
