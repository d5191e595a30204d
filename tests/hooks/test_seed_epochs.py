"""Two epochs are one epoch and one resumed, bit for bit, through the pipeline of the digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from upvit_mm.hooks.seed_epochs import seed_of_epoch
from upvit_mm.runner import build_runner


def train(cfg: Config) -> None:
    build_runner(cfg, ('train',)).train()


def losses(cfg: Config, epoch: int) -> list[float]:
    """The curve of an epoch, as mmengine writes it."""
    (log,) = Path(cfg.work_dir).glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line['loss'] for line in lines if line.get('epoch') == epoch]


def states(cfg: Config, epoch: int) -> list[dict]:
    checkpoint = torch.load(Path(cfg.work_dir, f'epoch_{epoch}.pth'), weights_only=False)
    return [checkpoint[part] for part in ('state_dict', 'ema_state_dict')]


def resumed(cfg: Config, whole: Config) -> Config:
    cfg.update(resume=True, load_from=str(Path(whole.work_dir, 'epoch_1.pth')))
    return cfg


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('seed', [0, None])
def test_a_resumed_run_is_the_same_run(digits_training, identical, workers, seed):
    settings = {'train_dataloader.num_workers': workers, 'randomness.seed': seed}
    whole = digits_training('whole', **settings)
    rest = resumed(digits_training('rest', **settings), whole)
    train(whole)
    train(rest)
    assert losses(rest, 1) == []
    assert len(losses(whole, 2)) == 6
    assert losses(rest, 2) == losses(whole, 2)
    for ours, theirs in zip(states(rest, 2), states(whole, 2)):
        assert identical(ours, theirs)


def test_without_the_hook_it_is_another(digits_training):
    """What the hook is there for."""
    whole, rest = (digits_training(name, custom_hooks=[]) for name in ('whole', 'rest'))
    train(whole)
    train(resumed(rest, whole))
    assert losses(rest, 2) != losses(whole, 2)


@pytest.mark.parametrize('workers', [0, 2])
def test_epochs_and_workers_draw_different_numbers(digits_training, workers):
    cfg = digits_training('run', **{'train_dataloader.num_workers': workers})
    cfg.train_dataloader.sampler.shuffle = False
    cfg.train_dataloader.dataset.indices = [0] * 48  # one image, cropped 48 times
    runner = build_runner(cfg, ('train',))
    batches, step = [], type(runner.model).train_step

    def note(data, optim_wrapper):
        batches.append(torch.stack([image.float().mean() for image in data['inputs']]))
        return step(runner.model, data, optim_wrapper)

    runner.model.train_step = note
    runner.train()
    assert len({tuple(batch.tolist()) for batch in batches}) == 12


def test_seeds():
    seeds = {seed_of_epoch(seed, epoch, rank) for seed in (0, 1, 2**31) for epoch in range(3) for rank in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_persistent_workers_are_refused(digits_training):
    options = {'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True}
    with pytest.raises(ValueError, match=r'train_dataloader.persistent_workers = True: .* set it to False'):
        train(digits_training('run', **options))


def test_processes_of_different_seeds_share_one_order_of_images(digits_training, monkeypatch):
    """With `diff_rank_seed` a runner's seed is one of its process; the first one's orders the images of all."""
    monkeypatch.setattr('upvit_mm.hooks.seed_epochs.broadcast_object_list', lambda seeds: seeds.__setitem__(0, 77))
    runner = build_runner(digits_training('run'), ('train',))
    runner.train()
    assert runner.train_dataloader.sampler.seed == 77
