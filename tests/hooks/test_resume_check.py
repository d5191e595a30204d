"""What a run refuses to be resumed from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from upvit_mm.runner import build_runner

KEY = 'backbone.stages.0.norm.weight'


@pytest.fixture
def first(digits_training) -> dict:
    """A checkpoint with averaged weights."""
    cfg = digits_training('first', **{'train_cfg.max_epochs': 1})
    build_runner(cfg, ('train',)).train()
    return torch.load(Path(cfg.work_dir, 'epoch_1.pth'), weights_only=False)


def test_resuming_from_what_does_not_fit(first, digits_training, tmp_path):
    def refused(checkpoint: dict, match: str, **changes) -> None:
        torch.save(checkpoint, tmp_path / 'it.pth')
        cfg = digits_training('run', load_from=str(tmp_path / 'it.pth'), resume=True, **changes)
        with pytest.raises(
            ValueError, match=rf"it.pth' cannot be resumed: {match}.*Resume with the config of that run"
        ):
            build_runner(cfg, ('train',)).train()

    def without(state: dict, *keys: str) -> dict:
        return {k: v for k, v in state.items() if k not in keys}

    weights, averages = first['state_dict'], first['ema_state_dict']
    refused(
        first | {'state_dict': without(weights, KEY) | {'extra': torch.ones(1)}},
        rf'2 of {len(weights)} tensors of its state_dict differ: {KEY} is missing; extra is not in the model',
    )
    refused(
        first | {'ema_state_dict': without(averages, f'module.{KEY}', 'steps')},
        rf'2 of {len(averages)} tensors of its ema_state_dict differ: steps is missing; module.{KEY} is missing',
    )
    refused(without(first, 'ema_state_dict'), 'it has no ema_state_dict')
    refused(first, 'it holds averaged weights, and no EMAHook is set', custom_hooks=[])
    wider = first | {'state_dict': weights | {KEY: torch.ones(99)}}
    refused(wider, rf'1 of {len(weights)} tensors of its state_dict differ: {KEY} has shape \(99,\), the model \(16,\)')


def test_a_damaged_checkpoint_is_neither_resumed_nor_loaded(first, digits_training, tmp_path):
    """torch would read this one silently."""
    path = tmp_path / 'it.pth'
    torch.save(first, path)
    content = bytearray(path.read_bytes())
    content[content.index(first['state_dict'][KEY].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"it.pth' is corrupt or no checkpoint: record .* does not match"):
            build_runner(digits_training('run', load_from=str(path), resume=resume), ('train',)).train()
    with pytest.raises(FileNotFoundError, match=r"checkpoint 'gone.pth' does not exist; give the one to start from"):
        build_runner(digits_training('run', load_from='gone.pth'), ('train',)).train()


def test_a_pointer_that_was_emptied_is_mended(digits_training):
    """mmengine empties ``last_checkpoint`` before it writes: a kill in between must not cost the run."""
    cfg = digits_training('run', **{'train_cfg.max_epochs': 1})
    build_runner(cfg, ('train',)).train()
    pointer = Path(cfg.work_dir, 'last_checkpoint')
    before = pointer.read_text()
    pointer.write_text('')
    cfg = digits_training('run', resume=True, experiment_name='again')
    build_runner(cfg, ('train',)).train()
    assert Path(before).name == 'epoch_1.pth'
    assert Path(pointer.read_text()) == Path(before).with_name('epoch_2.pth')


def test_weights_that_are_not_resumed_are_left_to_mmengine(first, digits_training, tmp_path):
    state = {k: v for k, v in first['state_dict'].items() if not k.startswith('head.')}
    torch.save({'state_dict': state}, tmp_path / 'it.pth')
    cfg = digits_training('run', load_from=str(tmp_path / 'it.pth'), **{'train_cfg.max_epochs': 1})
    build_runner(cfg, ('train',)).train()
    assert Path(cfg.work_dir, 'epoch_1.pth').is_file()
