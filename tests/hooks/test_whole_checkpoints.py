"""Checkpoints that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from upvit_mm.files import check_records
from upvit_mm.runner import build_runner


def test_a_checkpoint_gets_its_name_when_it_is_whole(digits_training, monkeypatch):
    cfg = digits_training('run', **{'train_cfg.max_epochs': 1})
    path, found, replace = Path(cfg.work_dir, 'epoch_1.pth'), [], Path.replace

    def look(part: Path, target: Path) -> Path:
        if target == path:
            check_records(part)
            found.append(path.exists())
        return replace(part, target)

    monkeypatch.setattr(Path, 'replace', look)
    build_runner(cfg, ('train',)).train()
    assert found == [False]
    check_records(path)


def test_a_full_disk_leaves_the_last_checkpoint_and_no_half_of_the_next(digits_training, monkeypatch):
    cfg, write = digits_training('run'), Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if 'epoch_2.pth' in path.name:
            write(path, content[:100])
            raise OSError(28, 'No space left on device')
        return write(path, content)

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match=r"No space left on device: '.*epoch_2.pth'"):
        build_runner(cfg, ('train',)).train()
    folder = Path(cfg.work_dir)
    assert [path.name for path in folder.iterdir() if 'epoch' in path.name] == ['epoch_1.pth']
    assert Path((folder / 'last_checkpoint').read_text()).name == 'epoch_1.pth'


def test_another_place_for_checkpoints_is_left_alone(digits_training):
    cfg = digits_training('run')
    cfg.default_hooks.checkpoint.update(backend_args=dict(backend='local'))
    runner = build_runner(cfg, ('train',))
    runner.call_hook('before_run')
    (hook,) = [hook for hook in runner.hooks if type(hook).__name__ == 'CheckpointHook']
    assert hook.backend_args == dict(backend='local')
