"""Image sets of pruning: balanced, seeded, in test transforms, and what is unreadable."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from upvit_mm.data.image_set import choose_images, folder_sets, held_out_set, proxy_set


def test_proxy_set_is_balanced_seeded_and_in_test_transforms(cfg, scope):
    scope('mmpretrain')
    first, again, other = (proxy_set(cfg, 3, seed, batch_size=8) for seed in (1, 1, 2))
    assert first.numbers == again.numbers != other.numbers
    assert first.labels[first.numbers].tolist() == [c for c in range(10) for _ in range(3)]
    batches = list(first)
    assert [len(batch.images) for batch in batches] == [8, 8, 8, 6]
    assert [n for batch in batches for n in batch.numbers] == first.numbers
    assert torch.cat([batch.labels for batch in batches]).tolist() == first.labels[first.numbers].tolist()
    assert batches[0].images.shape[1:] == (3, 64, 64)
    assert all('/train/' in path for path in first.paths)
    held_out = held_out_set(cfg, 50, seed=0)
    assert len(held_out.numbers) == 50
    assert all('/val/' in path for path in held_out.paths)
    assert len(held_out_set(cfg, 10**6, seed=0).numbers) == 1000


def test_choice_of_images():
    labels = [0] * 5 + [1] * 5 + [2] * 5
    chosen = choose_images(labels, 2, 0, 3)
    assert chosen == sorted(set(chosen))
    assert [labels[n] for n in chosen] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match='class 3 has 0 training images: 2 of every class'):
        choose_images(labels, 2, 0, 4)
    with pytest.raises(ValueError, match='per_class = 0'):
        choose_images(labels, 0, 0, 3)


def test_unreadable_images_are_left_out_or_refused(cfg, scope, digits_folder, tmp_path, caplog):
    scope('mmpretrain')
    root = shutil.copytree(digits_folder / 'classification', tmp_path / 'classification')
    for part in ('train', 'val'):
        cfg[f'{part}_dataloader'].dataset.data_root = str(root)
    whole = proxy_set(cfg, 20, seed=0)
    Path(whole.paths[7]).write_bytes(b'no picture')
    with caplog.at_level('WARNING', 'upvit_mm'):
        left = proxy_set(cfg, 20, seed=0)  # 1 of 200
    assert left.numbers == whole.numbers[:7] + whole.numbers[8:]
    assert f'{whole.paths[7]} cannot be read and is left out' in caplog.text
    for path in whole.paths[:3]:
        Path(path).write_bytes(b'')
    with pytest.raises(ValueError, match=r'4 of 200 images cannot be read, .*png among them'):
        proxy_set(cfg, 20, seed=0)


def test_a_plain_folder_has_no_labels(cfg, scope, digits_folder, tmp_path, caplog):
    scope('mmpretrain')
    folder = tmp_path / 'pictures'
    (folder / 'deep').mkdir(parents=True)
    pictures = sorted((digits_folder / 'classification/train/3').iterdir())[:30]
    for k, picture in enumerate(pictures):
        shutil.copy(picture, folder / ('deep' if k % 2 else '.') / picture.name)
    with caplog.at_level('INFO', 'upvit_mm'):
        proxy, held_out = folder_sets(cfg, str(folder), 12, 10, seed=0, batch_size=8)
    assert 'images without labels' in caplog.text
    assert [len(batch.images) for batch in proxy] == [8, 4]
    assert all(batch.labels is None for batch in proxy)
    assert len(held_out.numbers) == 10
    assert not set(proxy.paths) & set(held_out.paths)
    again, _ = folder_sets(cfg, str(folder), 12, 10, seed=0)
    assert again.paths == proxy.paths
    with pytest.raises(ValueError, match='has 30 images: 30 for the proxy set are wanted'):
        folder_sets(cfg, str(folder), 30, 10, seed=0)
    (tmp_path / 'val.json').write_text('{}')
    with pytest.raises(ValueError, match=r"val.json': is a file; must be a folder of pictures"):
        folder_sets(cfg, str(tmp_path / 'val.json'), 12, 10, seed=0)
    with pytest.raises(FileNotFoundError, match='does not exist'):
        folder_sets(cfg, str(folder / 'no'), 3, 1, seed=0)


def test_pictures_of_all_endings_in_a_plain_folder(cfg, scope, tmp_path, caplog):
    """mmpretrain by itself skips .webp and .tiff without a word."""
    import cv2
    import numpy as np

    scope('mmpretrain')
    names = ['a.jpg', 'b.JPEG', 'c.Png', 'd.webp', 'e.WEBP', 'f.tif', 'g.tiff', 'h.bmp', 'i.ppm', 'j.pgm']
    for name in names:
        picture = np.full((40, 50) if name == 'j.pgm' else (40, 50, 3), 90, np.uint8)
        _, content = cv2.imencode(Path(name).suffix.lower(), picture)
        (tmp_path / name).write_bytes(content.tobytes())
    for name in ('notes.txt', 'k.heic', 'l.heic', '.hidden.png'):
        (tmp_path / name).touch()
    with caplog.at_level('INFO', 'upvit_mm'):
        proxy, held_out = folder_sets(cfg, str(tmp_path), 8, 2, seed=0)
    assert sorted(Path(path).name for path in [*proxy.paths, *held_out.paths]) == names
    assert f'{tmp_path}: left out because of their endings: 2 .heic, 1 .txt' in caplog.messages
    (tmp_path / '.ipynb_checkpoints').mkdir()
    with pytest.raises(ValueError, match=r'left \(\.ipynb_checkpoints\): their images would be used too\. Remove'):
        folder_sets(cfg, str(tmp_path), 8, 2, seed=0)


def test_a_folder_without_pictures(cfg, tmp_path):
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(ValueError, match=r'has 0 images: 3 for the proxy set are wanted, .*end in \.jpg, .*\.webp\.$'):
        folder_sets(cfg, str(tmp_path), 3, 2, seed=0)


@pytest.mark.parametrize('absent', [True, False])
def test_without_a_test_part_images_are_prepared_as_for_validation(absent, cfg, scope, caplog):
    scope('mmpretrain')
    pixels = next(iter(held_out_set(cfg, 4, seed=0))).images
    if absent:
        cfg.pop('test_dataloader')
    else:
        cfg.test_dataloader = None
    with caplog.at_level('INFO', 'upvit_mm'):
        again = next(iter(held_out_set(cfg, 4, seed=0))).images
    assert torch.equal(again, pixels)
    assert caplog.messages == ['the config has no test_dataloader: images are prepared like those of val_dataloader']
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match='the config has neither test_dataloader nor val_dataloader: give one of them'):
        proxy_set(cfg, 1, seed=0)
    with pytest.raises(ValueError, match='has no val_dataloader: set --eval-images 0, or give one, or take --images'):
        held_out_set(cfg, 4, seed=0)
    cfg.pop('train_dataloader')
    with pytest.raises(ValueError, match='the config has no train_dataloader: give one, or take --images FOLDER'):
        proxy_set(cfg, 1, seed=0)


def test_the_preprocessing_may_stand_in_the_model(cfg, scope):
    """As mmengine has it, where the model's own goes before that of the config."""
    scope('mmpretrain')
    pixels = next(iter(proxy_set(cfg, 1, seed=0))).images
    cfg.model.data_preprocessor = cfg.data_preprocessor
    cfg.data_preprocessor = dict(mean=[0.0] * 3)
    assert torch.equal(next(iter(proxy_set(cfg, 1, seed=0))).images, pixels)


def test_images_come_from_inside_a_wrapper(cfg, scope):
    scope('mmpretrain')
    plain, inner = proxy_set(cfg, 2, seed=0), cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=inner)
    assert proxy_set(cfg, 2, seed=0).paths == plain.paths
    for other in (
        dict(type='ConcatDataset', datasets=[inner, inner]),
        dict(type='KFoldDataset', fold=1, test_mode=False, dataset=inner),  # its images are not all of the inner one
    ):
        cfg.train_dataloader.dataset = other
        with pytest.raises(ValueError, match=f'dataset.type = {other["type"]!r}: images are drawn from one data set'):
            proxy_set(cfg, 2, seed=0)


@pytest.mark.parametrize('family', ['pvtv2'])
def test_each_process_reads_its_share(cfg, scope, digits_folder, tmp_path, together):
    """An image that one of them cannot read is left out by all."""
    scope('mmpretrain')
    root = shutil.copytree(digits_folder / 'classification/train', tmp_path / 'train')
    cfg.train_dataloader.dataset.update(data_root=str(root), data_prefix='')
    whole = proxy_set(cfg, 11, seed=0, batch_size=8)
    Path(whole.paths[7]).write_bytes(b'no picture')
    alone = proxy_set(cfg, 11, seed=0, batch_size=8, workers=0)
    sets = together(3, lambda crew: proxy_set(cfg, 11, seed=0, batch_size=8, crew=crew))
    assert [len(found._images) for found in sets] == [39, 38, 32]  # 5, 5 and 4 of 14 batches
    for found in sets:
        assert found.numbers == alone.numbers == whole.numbers[:7] + whole.numbers[8:]
        assert all(torch.equal(a.images, b.images) for a, b in zip(found, alone, strict=True))
