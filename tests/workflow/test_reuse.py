"""Finished work is done again when its pictures are others, and not when they have only moved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from upvit_mm.arch import ArchSpec
from upvit_mm.compare.evaluation import Evaluation
from upvit_mm.workflow.prune import PruneJob, prune
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.trainings import Training

QUICK = dict(method='taylor', per_class=1, eval_images=20)
PICTURES = dict(method='taylor', num_images=6, eval_images=4, batch_size=8)


@pytest.fixture
def cfg(cfg, shrink, digits_folder, tmp_path) -> Config:
    """On data of its own."""
    cfg = shrink(cfg)
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.update(data_root=str(tmp_path / 'data'), data_prefix=part)
        cfg[f'{part}_dataloader'].dataset.pop('indices', None)
        for label in '0123456789':
            folder = tmp_path / 'data' / part / label
            folder.mkdir(parents=True)
            for path in sorted((digits_folder / 'classification/val' / label).iterdir())[:3]:
                shutil.copy2(path, folder)
    return cfg


@pytest.fixture
def target(cfg) -> ArchSpec:
    return ArchSpec.from_dict(cfg.arch).with_widths({'mlp_hidden_dims': 8})


def replace_pictures(folder: Path, seed: int) -> None:
    for k, path in enumerate(sorted(folder.rglob('*.png'))):
        pixels = np.random.default_rng([seed, k]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_scores_of_other_pictures_are_not_reused(cfg, checkpoint, target, tmp_path):
    pictures, work = tmp_path / 'pictures', tmp_path / 'out'
    shutil.copytree(tmp_path / 'data/train', pictures)
    before = (prune(cfg, checkpoint, target, work, PruneSettings(images=str(pictures), **PICTURES)), _read(work))
    replace_pictures(pictures, 0)
    after = (prune(cfg, checkpoint, target, work, PruneSettings(images=str(pictures), **PICTURES)), _read(work))
    assert before[1]['scores.pt'] != after[1]['scores.pt']
    assert before[0].held_out['sliced']['kl'] != after[0].held_out['sliced']['kl']

    pictures.rename(tmp_path / 'moved')
    job = PruneJob(cfg, checkpoint, target, work, PruneSettings(images=str(tmp_path / 'moved'), **PICTURES))
    assert job.run().held_out == after[0].held_out
    assert not {'proxy', 'held_out'} & set(vars(job.images))  # nothing was read
    assert _read(work)['scores.pt'] == after[1]['scores.pt']


@pytest.mark.parametrize('family', ['pvtv2'])
def test_only_what_saw_the_pictures_is_done_again(cfg, checkpoint, target, tmp_path):
    settings, stamps = PruneSettings(compensate=True, **QUICK), []

    def run() -> set[str]:
        prune(cfg, checkpoint, target, tmp_path / 'out', settings)
        stamps.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / 'out').iterdir()})
        return {name for name, stamp in stamps[-1].items() if stamp != stamps[-2 % len(stamps)].get(name)}

    run()
    assert run() == set()
    replace_pictures(tmp_path / 'data/val', 1)
    assert run() == {'report.json', 'report.md', 'widths.png', 'steps.json'}
    replace_pictures(tmp_path / 'data/train', 2)
    assert {'scores.pt', 'pruned.pth', 'report.json'} <= run()


@pytest.mark.parametrize('family', ['pvtv2'])
@pytest.mark.parametrize('method', ['magnitude', 'random'])
def test_methods_without_pictures(cfg, checkpoint, target, tmp_path, method):
    settings = PruneSettings(method=method, per_class=1, eval_images=0)
    before = (prune(cfg, checkpoint, target, tmp_path / 'out', settings), _read(tmp_path / 'out'))
    shutil.rmtree(tmp_path / 'data')
    prune(cfg, checkpoint, target, tmp_path / 'out', settings)
    assert _read(tmp_path / 'out') == before[1]


@pytest.mark.parametrize('family', ['pvtv2'])
def test_finished_work_needs_no_data(cfg, checkpoint, target, tmp_path):
    """They are taken for what they were; another place that never was there is a mistake."""
    settings = PruneSettings(**QUICK)
    first = prune(cfg, checkpoint, target, tmp_path / 'out', settings)
    (tmp_path / 'data').rename(tmp_path / 'away')
    assert prune(cfg, checkpoint, target, tmp_path / 'out', settings).held_out == first.held_out
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset.data_root = str(tmp_path / 'typo')
    with pytest.raises(FileNotFoundError, match="typo' does not exist"):
        prune(cfg, checkpoint, target, tmp_path / 'out', settings)


@pytest.mark.parametrize('family', ['deit'])
def test_trainings_and_evaluations_know_their_data_and_files(cfg, tmp_path):
    """By part: a training reads train and val, an evaluation test."""
    (tmp_path / 'weights.pth').write_text('weights')
    (tmp_path / 'start.pth').write_text('start')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'start.pth'))
    changes = {
        'train': lambda: replace_pictures(tmp_path / 'data/train', 3),
        'val': lambda: replace_pictures(tmp_path / 'data/val', 3),
        'test': lambda: replace_pictures(tmp_path / 'data/test', 3),
        'start.pth': lambda: (tmp_path / 'start.pth').write_text('other'),
        'nothing': lambda: os.utime(tmp_path / 'weights.pth'),
    }

    def inputs() -> tuple[str, str]:
        evaluation = Evaluation('a', tmp_path / 'evaluation', cfg, tmp_path / 'weights.pth')
        return Training('a', tmp_path / 'training', cfg).inputs, evaluation._inputs()

    changed, before = {}, inputs()
    for name, change in changes.items():
        change()
        now = inputs()
        changed[name] = (now[0] != before[0], now[1] != before[1])
        before = now
    assert changed == {
        'train': (True, False),
        'val': (True, False),
        'test': (False, True),
        'start.pth': (True, True),
        'nothing': (False, False),
    }


def _read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
