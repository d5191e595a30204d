"""A loss that is no number stops a run of a classifier or a detector, and leaves the last checkpoint."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

TYPES = """
from mmengine.registry import HOOKS, init_default_scope

for scope in ('mmdet', 'mmpretrain'):
    init_default_scope(scope)
    for name in ('StopOnNonFiniteLoss', 'EpochEMAHook'):
        print(type(HOOKS.build(dict(type=f'upvit_mm.{name}'))).__name__)
"""


class Numbers(Dataset):
    """0.0, 1.0, ... in order, one a batch."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.tensor([float(index)])


class Line(BaseModel):
    """``spoil(step, loss)``: what becomes of the second of two losses in a step, from 1."""

    def __init__(self, spoil):
        super().__init__()
        self.fc = nn.Linear(1, 1)
        self.spoil = spoil
        self.step = 0

    def forward(self, inputs, mode='tensor'):
        self.step += 1
        loss = self.fc(inputs).square().mean()
        return dict(loss_a=loss, loss_b=[self.spoil(self.step, loss), 0 * loss], accuracy=loss * float('nan'))

    def _run_forward(self, data, mode):
        return self(torch.stack(data), mode=mode)


def run(model, folder, name='StopOnNonFiniteLoss', **settings):
    runner = Runner(
        model,
        str(folder),
        train_dataloader=dict(
            dataset=Numbers(), batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)),
        custom_hooks=[dict(type=f'upvit_mm.{name}')],
        experiment_name=f'{folder.parent.name}_{folder.name}_{name}',
        log_level='ERROR',
        **settings,
    )
    runner.train()
    return runner


def test_types_resolve_without_custom_imports(run_forked):
    assert run_forked(TYPES).split()[-4:] == ['StopOnNonFiniteLoss', 'EpochEMAHook'] * 2


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_stops_before_the_step_and_names_iteration_and_term(value, tmp_path):
    seen = {}

    def spoil(step, loss):
        if step < 5:
            return loss
        seen['weight'] = model.fc.weight.clone()
        return loss * value

    model = Line(spoil)
    with pytest.raises(
        ValueError, match=r'iteration 5 \(epoch 2\): loss_b = (nan|inf) \(finite: loss_a = \S+\)\.'
    ) as info:
        run(model, tmp_path / 'run')
    assert torch.equal(model.fc.weight, seen['weight'])
    assert [p.name for p in (tmp_path / 'run').glob('*.pth')] == ['epoch_1.pth']
    assert f'last checkpoint is {tmp_path}/run/epoch_1.pth. Check the data' in str(info.value)


class Sample:
    """What mmdet and mmpretrain give a model for each picture, as far as it matters here."""

    def __init__(self, index):
        self.img_path = f'{index}.png'


class Pictures(Line):
    """Batches with samples."""

    def _run_forward(self, data, mode):
        inputs = torch.stack(data)
        return self(inputs, mode=mode, data_samples=[Sample(k) for k in range(int(self.step), 20)])

    def forward(self, inputs, mode='tensor', data_samples=()):
        return super().forward(inputs, mode)


def test_the_pictures_of_the_batch_are_named(tmp_path):
    model = Pictures(lambda step, loss: loss * float('inf') if step == 2 else loss)
    with pytest.raises(ValueError, match='loss_b = inf') as info:
        run(model, tmp_path / 'run')
    names = ', '.join(f'{k}.png' for k in range(1, 17))
    assert f'Check the data of this batch ({names} and 3 more), lower the learning rate' in str(info.value)


def test_no_checkpoint_yet(tmp_path):
    with pytest.raises(ValueError, match=r'iteration 1 \(epoch 1\): loss_b = nan .*No checkpoint yet'):
        run(Line(lambda step, loss: loss * float('nan')), tmp_path / 'run')


def test_spoilt_weights_do_not_replace_the_last_checkpoint(tmp_path):
    """The loss of the last step is a number, its gradient is not: sqrt(0) has an infinite slope."""
    model = Line(lambda step, loss: (loss * 0).sqrt() if step == 6 else loss)
    with pytest.raises(ValueError, match=r'iteration 6 \(epoch 2\): 2 weight tensors are not finite, first fc.weight'):
        run(model, tmp_path / 'run')
    kept = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_healthy_run_is_left_alone_and_nothing_stays_on_the_model(tmp_path):
    model = Line(lambda step, loss: loss)
    run(model, tmp_path / 'run')
    assert (tmp_path / 'run' / 'epoch_2.pth').is_file()
    assert not model._forward_hooks


class Elsewhere(Line):
    """Computes its losses outside ``forward(mode='loss')``."""

    def _run_forward(self, data, mode):
        return self(torch.stack(data))


def test_losses_from_elsewhere_are_caught_behind_the_step(tmp_path):
    model = Elsewhere(lambda step, loss: loss * float('nan') if step == 2 else loss)
    with pytest.raises(ValueError, match=r'iteration 2 \(epoch 1\): loss = nan, loss_b = nan'):
        run(model, tmp_path / 'run')


def test_epoch_ema_moves_once_an_epoch_from_the_weights_before_training(tmp_path):
    weights = []

    def note(step, loss):
        weights.append(model.fc.weight.detach().clone())
        return loss

    model = Line(note)
    runner = run(model, tmp_path / 'run', 'EpochEMAHook')
    expected = weights[0]
    for n, weight in ((1, weights[3]), (2, model.fc.weight.detach())):  # after epochs of 3 steps
        expected = expected + 9 / (9 + n) * (weight - expected)
    (ema,) = [hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model')]
    assert torch.allclose(ema.module.fc.weight, expected)
    assert not torch.allclose(model.fc.weight, expected)
