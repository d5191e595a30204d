"""What data are: the same after a move, others after any change of what is read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from upvit_mm.data import identity
from upvit_mm.data.identity import identity_of, looked_at_once, run_identity

CLASSES = dict(type='CustomDataset', data_prefix='train')
PLAIN = dict(type='CustomDataset', with_label=False)
COCO = dict(type='mmdet.CocoDataset', ann_file='annotations/train.json', data_prefix=dict(img='train/'))
KINDS = {'classes': CLASSES, 'plain': PLAIN, 'coco': COCO, 'imagenet': dict(type='ImageNet', split='train')}


@pytest.fixture
def root(tmp_path) -> Path:
    """Pictures in class folders, hidden files, and two annotation files."""
    folder = tmp_path / 'here'
    for name in ('train/a/1.png', 'train/a/2.png', 'train/b/3.JPEG', 'val/a/4.png', 'train/.hidden.png'):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (folder / 'annotations').mkdir()
    for part in ('train', 'val'):
        (folder / f'annotations/{part}.json').write_text(json.dumps({'images': [part]}))
    (folder / 'meta').mkdir()
    (folder / 'meta/train.txt').write_text('a/1.png 0\n')
    return folder


def at(root: Path, kind: str, **settings) -> str | None:
    return identity_of(KINDS[kind] | dict(data_root=str(root)) | settings)


@pytest.mark.parametrize('kind', KINDS)
def test_a_folder_that_moves_stays_what_it_was(root, kind, tmp_path):
    before = at(root, kind)
    assert len(before) == 64
    assert at(root, kind) == before
    assert at(root.rename(tmp_path / 'there'), kind) == before
    shutil.copytree(tmp_path / 'there', root)  # keeps times
    assert at(root, kind) == before
    absolute = {'data_root': '', 'data_prefix': str(root / 'train')}
    if kind == 'classes':
        assert at(root, kind, **absolute) == at(tmp_path / 'there', kind, **absolute) == before


@pytest.mark.parametrize('kind', KINDS)
def test_other_pictures_are_other_data(root, kind):
    path, before = root / 'train/a/2.png', at(root, kind)
    content, stat = path.read_text(), path.stat()
    seen = [before]

    path.write_text(content.upper())  # of the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    seen.append(at(root, kind))
    path.write_text('longer than before')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seen.append(at(root, kind))
    path.rename(path.with_name('5.png'))
    seen.append(at(root, kind))
    (root / 'train/b/6.png').write_text('one more')
    seen.append(at(root, kind))
    (root / 'train/b/6.png').unlink()
    path.with_name('5.png').rename(path)
    path.write_text(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(set(seen)) == len(seen)
    assert at(root, kind) == before


@pytest.mark.parametrize(('kind', 'name'), [('coco', 'annotations/train.json'), ('imagenet', 'meta/train.txt')])
def test_other_annotations_are_other_data(root, kind, name):
    before = at(root, kind)
    (root / name).write_text('something else')
    assert at(root, kind) != before


@pytest.mark.parametrize('kind', ['classes', 'plain', 'coco'])
def test_what_is_not_read_does_not_count(root, kind):
    before = at(root, kind)
    for name in ('train/.DS_Store', 'train/.cache/7.png', 'train/__pycache__/8.png', 'notes/9.txt'):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text('not data')
    if kind != 'coco':  # its folder may hold what a list names, whatever the ending
        (root / 'train/a/steps.json').write_text('{}')
    assert at(root, kind) == before
    assert at(root, kind, pipeline=[dict(type='Resize', scale=3)]) == before


def test_settings_count(root, tmp_path):
    before = at(root, 'classes')
    names = tmp_path / 'names.txt'
    names.write_text('a\nb\n')
    others = [
        at(root, 'classes', indices=1),
        at(root, 'classes', data_prefix='val'),
        at(root, 'classes', extensions=['.JPEG']),
        at(root, 'classes', metainfo=dict(classes=['a', 'b'])),
        at(root, 'classes', metainfo=dict(classes=str(names))),
    ]
    names.write_text('a\nc\n')
    others.append(at(root, 'classes', metainfo=dict(classes=str(names))))
    assert len({before, *others}) == 7
    (root / 'train/a/1.png').write_text('other')
    assert at(root, 'classes', extensions=['.JPEG']) == others[2]  # another ending


def test_wrappers_and_several_data_sets(root):
    inner = COCO | dict(data_root=str(root))
    both = dict(type='ConcatDataset', datasets=[inner, dict(inner, data_prefix=dict(img='val/'))])
    before = [identity_of(dict(type='RepeatDataset', times=3, dataset=inner)), identity_of(both)]
    (root / 'val/a/4.png').write_text('other')
    assert identity_of(dict(type='RepeatDataset', times=3, dataset=inner)) == before[0]
    assert identity_of(both) != before[1]


def test_links(root, tmp_path):
    """Of a class folder; round in a circle; to nowhere."""
    outside = tmp_path / 'outside'
    (root / 'train/b').rename(outside)
    (root / 'train/b').symlink_to(outside)
    (root / 'train/a/up').symlink_to(root / 'train')
    before = at(root, 'classes')
    (root / 'train/a/5.png').symlink_to(tmp_path / 'nowhere.png')
    nowhere = at(root, 'classes')
    (outside / '3.JPEG').write_text('other')
    assert len({before, nowhere, at(root, 'classes')}) == 3


def test_data_that_are_not_here(root, tmp_path):
    assert identity_of(COCO | dict(data_root=str(tmp_path / 'nowhere'))) is None
    elsewhere = COCO | dict(data_root='s3://bucket/', backend_args=dict(backend='petrel'))
    assert identity_of(elsewhere) not in (None, identity_of(dict(elsewhere, data_root='s3://other/')))
    shutil.rmtree(root / 'train')
    assert at(root, 'coco') is not None  # the list is still there


def test_a_data_set_that_names_no_folder(root, monkeypatch, caplog):
    """The folder that a command is run in may hold anything, its results too."""
    monkeypatch.chdir(root)
    lists = dict(type='CocoDataset', ann_file='annotations/train.json')
    with caplog.at_level('WARNING', 'upvit_mm'):
        before = identity_of(lists)
    assert 'a data set of annotations/train.json names no folder: its pictures are not checked' in caplog.text
    (root / 'work_dirs').mkdir()
    (root / 'work_dirs/curves.png').write_text('result')
    assert identity_of(lists) == before
    (root / 'annotations/train.json').write_text('other')
    assert identity_of(lists) != before


# ------------------------------------------------------------------------ runs


@pytest.fixture
def cfg(root, tmp_path) -> Config:
    """Of a run with a file in each place that may name one."""
    loaders = {f'{part}_dataloader': dict(dataset=CLASSES | dict(data_root=str(root), data_prefix=part)) for part in
               ('train', 'val')}  # fmt: skip
    names = ('arch.json', 'weights.pth', 'teacher.pth', 'first.json', 'second.json', 'start.pth', 'judge.json')
    files = {name: str(tmp_path / name) for name in names}
    for name, path in files.items():
        Path(path).write_text(name)
    model = dict(
        backbone=dict(arch=files['arch.json'], init_cfg=dict(checkpoint=files['weights.pth'])),
        teacher=dict(checkpoint=files['teacher.pth'], other='https://example.org/weights.pth'),
        distill=dict(feature=dict(plan=[files['first.json'], files['second.json']])),
    )
    evaluator = dict(type='CocoMetric', ann_file=files['judge.json'])
    return Config(dict(model=model, load_from=files['start.pth'], val_evaluator=evaluator, **loaders))


def test_a_run_reads_data_and_files(cfg, root, tmp_path):
    before = run_identity(cfg, ('train', 'val'))
    assert len(before) == 2 + 7
    changed = []
    for name in ('arch.json', 'weights.pth', 'teacher.pth', 'first.json', 'second.json', 'start.pth', 'judge.json'):
        (tmp_path / name).write_text('other')
        now = run_identity(cfg, ('train', 'val'))
        changed.append([k for k, pair in enumerate(zip(before, now)) if pair[0] != pair[1]])
        before = now
    assert changed == [[k] for k in range(2, 9)]
    (root / 'val/a/4.png').write_text('other picture')
    assert run_identity(cfg, ('train', 'val'))[1] != before[1]
    assert run_identity(cfg, ('train',))[0] == before[0]
    assert len(run_identity(cfg, ('train',))) == 1 + 6  # that evaluator does not run


def test_trainings_side_by_side_look_once(cfg, root, monkeypatch):
    looked, hashed = [], []
    look, sha256_of = identity._identity_of_folder, identity.sha256_of
    monkeypatch.setattr(identity, '_identity_of_folder', lambda *args: (looked.append(args[0]), look(*args))[1])
    monkeypatch.setattr(identity, 'sha256_of', lambda path: (hashed.append(path), sha256_of(path))[1])
    with looked_at_once():
        first, second = (run_identity(cfg, ('train', 'val')) for _ in range(2))
        (root / 'val/a/4.png').write_text('other picture')
        third = run_identity(cfg, ('train', 'val'))
    assert first == second == third
    assert (len(looked), len(hashed)) == (2, 7)
    assert run_identity(cfg, ('train', 'val')) != first
    assert len(looked) == 4
