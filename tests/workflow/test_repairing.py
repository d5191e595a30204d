"""A compensation that is cut off goes on after the last layer that was kept, with the same result."""

from __future__ import annotations

import pytest
import torch

from upvit_mm.pruning.compensate import steps_of
from upvit_mm.pruning.plan import PrunePlan
from upvit_mm.pruning.ridge import System
from upvit_mm.workflow import repairing
from upvit_mm.workflow.prune import PruneJob
from upvit_mm.workflow.prune_settings import PruneSettings

SETTINGS = PruneSettings(method='magnitude', per_class=2, eval_images=0, compensate=True)


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / 'pruned.pth', weights_only=True)['state_dict']


def test_it_goes_on_where_it_was_cut_off(cfg, checkpoint, target, tmp_path, monkeypatch, identical, caplog):
    PruneJob(cfg, checkpoint, target, tmp_path / 'calm', SETTINGS).run()
    monkeypatch.setattr(repairing, 'SAVE_EVERY', 0.0)
    solve, solved = System.solve, []

    def stop(self, ridge, name):
        if len(solved) == 3:
            raise KeyboardInterrupt
        solved.append(name)
        return solve(self, ridge, name)

    with monkeypatch.context() as patch:
        patch.setattr(System, 'solve', stop)
        with pytest.raises(KeyboardInterrupt):
            PruneJob(cfg, checkpoint, target, tmp_path / 'cut', SETTINGS).run()
    assert not (tmp_path / 'cut/pruned.pth').exists()
    (kept,) = (tmp_path / 'cut/partial').iterdir()
    assert torch.load(kept, weights_only=True)['done'] == solved

    monkeypatch.setattr(System, 'solve', lambda self, *args: solved.append(args[1]) or solve(self, *args))
    with caplog.at_level('INFO', 'upvit_mm'):
        PruneJob(cfg, checkpoint, target, tmp_path / 'cut', SETTINGS).run()
    assert '3 layers were compensated before the job was cut off' in caplog.text
    assert solved == steps_of(PrunePlan.load(tmp_path / 'cut/plan.json'), has_head=True)  # each step once
    assert identical(weights(tmp_path / 'cut'), weights(tmp_path / 'calm'))
    assert not (tmp_path / 'cut/partial').exists()


def test_a_spoiled_file_counts_for_nothing(cfg, checkpoint, target, tmp_path, monkeypatch, identical, caplog):
    PruneJob(cfg, checkpoint, target, tmp_path / 'calm', SETTINGS).run()
    spoil = repairing._earlier

    def earlier(file, sliced):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b'half of it')
        return spoil(file, sliced)

    monkeypatch.setattr(repairing, '_earlier', earlier)
    PruneJob(cfg, checkpoint, target, tmp_path / 'other', SETTINGS).run()
    assert 'is damaged' in caplog.text
    assert identical(weights(tmp_path / 'other'), weights(tmp_path / 'calm'))
