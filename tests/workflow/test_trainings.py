"""Folders of trainings, and what a failed one means for others beside it."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from upvit_mm.workflow.finetune import training
from upvit_mm.workflow.trainings import Training, train_all

FAILS = """
_base_ = []  # without, the stock mmengine would take the imports for a lazy config
import pathlib
import time
pathlib.Path({ran!r}).touch()
time.sleep({seconds})
raise ValueError('of no use')
"""


def test_a_training_of_other_settings_is_set_aside_and_comes_back(tmp_path):
    folder = tmp_path / 'seed0'
    first, other, third = (Training('a', folder, Config(dict(lr=rate))) for rate in (1, 2, 3))
    assert first.prepare() is None
    (folder / 'epoch_1.pth').write_text('weights')
    assert first.prepare() is None  # the same again
    aside = other.prepare()
    assert aside.parent == tmp_path
    assert (aside / 'epoch_1.pth').read_text() == 'weights'
    assert sorted(path.name for path in folder.iterdir()) == ['config.py', 'inputs.sha256']
    assert third.prepare() is None  # nothing of the second is worth keeping
    assert first.prepare() is None
    assert (folder / 'epoch_1.pth').read_text() == 'weights'
    assert [path.name for path in tmp_path.iterdir()] == ['seed0']
    assert Config.fromfile(folder / 'config.py').lr == 1


def test_what_a_kill_left_of_a_folder_does_not_keep_an_earlier_training_away(tmp_path):
    folder = tmp_path / 'seed0'
    first, other = (Training('a', folder, Config(dict(lr=rate))) for rate in (1, 2))
    first.prepare()
    (folder / 'epoch_1.pth').write_text('weights')
    other.prepare()
    for path in folder.iterdir():
        path.unlink()
    (folder / 'inputs.sha256.part').touch()
    first.prepare()
    assert (folder / 'epoch_1.pth').read_text() == 'weights'
    assert other.prepare() is not None


def test_how_it_was_pruned_is_no_part_of_a_training(tmp_path):
    runs = [Config.fromfile('configs/demo/up-pvtv2-micro_digits.py') for _ in range(2)]
    runs[0].prune, runs[1].prune = dict(per_class=40), dict(per_class=80)
    trainings = [Training('a', tmp_path, training(run, run.model, 1, 0, 1e-3)) for run in runs]
    assert trainings[0].inputs == trainings[1].inputs


def test_others_do_not_begin_after_one_has_failed(tmp_path, monkeypatch):
    """Beside it and already handed out are a few; the rest would be hours of work that nobody wants any more."""
    trainings = [
        Training(f'number {k}', tmp_path / str(k), Config(dict(train_cfg=dict(max_epochs=1)))) for k in range(12)
    ]

    def prepare(self: Training) -> None:
        self.folder.mkdir()
        text = FAILS.format(ran=str(self.folder / 'ran'), seconds=0 if self.name == 'number 0' else 0.5)
        (self.folder / 'config.py').write_text(text)

    monkeypatch.setattr(Training, 'prepare', prepare)
    with pytest.raises(ValueError, match='of no use'):
        train_all(trainings, jobs=2, say=lambda text: None)
    assert sum(path.is_file() for path in tmp_path.glob('*/ran')) < 8
