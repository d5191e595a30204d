"""Whole training runs by distillation, with averaged weights."""

import pytest
import torch
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from upvit_mm.checkpoints import load_classifier


class Images(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        from mmpretrain.structures import DataSample

        generator = torch.Generator().manual_seed(index)
        raw = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator)
        return dict(inputs=raw, data_samples=DataSample().set_gt_label(index))


def run(model: nn.Module, folder, hook: dict, **settings) -> Runner:
    runner = Runner(
        model,
        str(folder),
        train_dataloader=dict(
            dataset=Images(), batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True)
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=4, by_epoch=False),
        custom_hooks=[hook, dict(type='upvit_mm.StopOnNonFiniteLoss')],
        default_scope='mmpretrain',
        experiment_name=f'{folder.parent.name}_{folder.name}',
        randomness=dict(seed=0),
        log_level='ERROR',
        **settings,
    )
    runner.train()
    return runner


HOOKS = {
    'step': dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.3),
    'epoch': dict(type='upvit_mm.EpochEMAHook'),
}


@pytest.mark.parametrize('hook', HOOKS)
def test_run_with_ema_gives_a_detectors_backbone(
    family, hook, distil, plan, detector, dense, tmp_path, identical, terms, pixels
):
    arch = plan.target_arch.to_dict()
    runner = run(distil(terms(projector=True), arch, data_preprocessor=dict(pixels)), tmp_path / hook, HOOKS[hook])
    path = tmp_path / hook / 'epoch_2.pth'
    ema = next(h for h in runner.hooks if 'EMAHook' in type(h).__name__).ema_model.module
    assert ema.teacher is None
    assert not identical(ema.state_dict(), runner.model.state_dict())
    assert identical(torch.load(path, weights_only=False)['state_dict'], ema.state_dict())
    assert {k.split('.')[0] for k in load_classifier(path)} == {'backbone', 'head'}
    model = detector(family, arch, init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone.'))
    model.init_weights()
    assert identical(model.backbone.state_dict(), ema.backbone.state_dict())
    assert identical(runner.model.teacher.classifier.state_dict(), dense.state_dict())


@pytest.mark.parametrize('hook', HOOKS)
def test_resumed_run_is_the_same_run(hook, distil, tmp_path, identical, terms, pixels):
    first = str(tmp_path / 'whole' / 'epoch_1.pth')
    run(distil(terms(), data_preprocessor=dict(pixels)), tmp_path / 'whole', HOOKS[hook])
    run(distil(terms(), data_preprocessor=dict(pixels)), tmp_path / 'rest', HOOKS[hook], load_from=first, resume=True)
    whole, rest = (torch.load(tmp_path / f / 'epoch_2.pth', weights_only=False) for f in ('whole', 'rest'))
    for part in ('state_dict', 'ema_state_dict'):
        assert identical(whole[part], rest[part])


def test_run_stops_at_a_term_that_is_no_number(distil, terms, tmp_path):
    model = distil(terms(loss_weight=float('inf')))
    before = model.backbone.stages[0].norm.bias.clone()  # a run initialises the head anew
    with pytest.raises(
        ValueError, match=r'iteration 1 \(epoch 1\): loss_feature = inf, loss_token = inf \(finite: loss_ce'
    ):
        run(model, tmp_path / 'run', HOOKS['step'])
    assert torch.equal(model.backbone.stages[0].norm.bias, before)
