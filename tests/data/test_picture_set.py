"""Pictures of a detector's data: which, how they are prepared, and how they are put into batches."""

from __future__ import annotations

import shutil
from pathlib import Path

import mmcv
import pytest
import torch

from upvit_mm.data.picture_set import PictureSet
from upvit_mm.data.pipelines import picture_pipeline
from upvit_mm.workflow.whole_detector import build_detector


@pytest.fixture
def cfg(detector_config):
    return detector_config('pvtv2')


@pytest.fixture
def pictures(cfg):
    """``pictures(folder=None, **changes)``"""
    preprocessor = build_detector(cfg).data_preprocessor

    def make(folder: Path | None = None, count: int = 8, seed: int = 0, batch_size: int = 3, **more) -> PictureSet:
        return PictureSet(cfg, preprocessor, folder and str(folder), count, seed, batch_size, **more)

    return make


def test_pictures_are_what_the_test_pipeline_gives(cfg, pictures):
    """The same pixels as a test of the detector on these files."""
    from mmdet.registry import DATASETS

    found = pictures()
    assert [found.size_of(k) for k in range(len(found))] == [3, 3, 2]
    assert [step['type'] for step in picture_pipeline(cfg)] == ['LoadImageFromFile', 'Resize', 'PackDetInputs']
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=cfg.test_dataloader.dataset.pipeline))
    detector = build_detector(cfg)
    for batch in found:
        assert batch.labels is None
        for k, number in enumerate(batch.numbers):
            sample = dataset[number]
            data = {'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]}
            assert torch.equal(batch.images[k : k + 1], detector.data_preprocessor(data, False)['inputs'])
            assert batch.sizes[k] == tuple(sample['data_samples'].img_shape)
    assert [Path(path).name for path in found.paths] == [
        Path(dataset.get_data_info(number)['img_path']).name for number in found.numbers
    ]
    assert torch.equal(found[1].images, found[1].images)  # a batch can be asked for twice


def test_the_seed_chooses(pictures):
    assert pictures(count=4).numbers == pictures(count=4).numbers
    assert len({tuple(pictures(count=4, seed=seed).numbers) for seed in range(4)}) > 1


def test_a_batch_has_one_size(digits_folder, pictures, tmp_path):
    """So a batch is padded like a single picture in a test: to the divisor of the preprocessor only."""
    for k, path in enumerate(sorted((digits_folder / 'train').rglob('*.png'))[:6]):
        picture = mmcv.imread(path)
        mmcv.imwrite(picture[:100] if k % 2 else picture, str(tmp_path / f'{k}.png'))
    found = pictures(tmp_path)
    sizes = [set(batch.sizes) for batch in found]
    assert sorted(map(len, sizes)) == [1, 1]
    assert {size for group in sizes for size in group} == {(64, 64), (50, 64)}
    assert {tuple(batch.images.shape[-2:]) for batch in found} == {(64, 64)}


def test_each_process_reads_its_share(pictures, together):
    alone, sets = pictures(workers=0), together(3, lambda crew: pictures(crew=crew))
    assert sorted(len(found._packed) for found in sets) == [2, 3, 3]
    for found in sets:
        assert found.numbers == alone.numbers
        assert all(torch.equal(a.images, b.images) for a, b in zip(found, alone, strict=True))


def test_a_folder(digits_folder, pictures, tmp_path, caplog):
    files = sorted((digits_folder / 'train').rglob('*.png'))
    shutil.copy(files[0], tmp_path / 'b.png')
    (tmp_path / 'inner').mkdir()
    shutil.copy(files[1], tmp_path / 'inner/a.png')
    with caplog.at_level('WARNING', 'upvit_mm'):
        found = pictures(tmp_path, count=5)
    assert 'has 2 pictures, fewer than num_images = 5: all are used' in caplog.text
    assert found.paths == [str(tmp_path / 'b.png'), str(tmp_path / 'inner/a.png')]
    (tmp_path / 'c.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r'1 of 3 images cannot be read, .*c\.png among them'):
        pictures(tmp_path)


def test_nothing_there(cfg, pictures, tmp_path):
    with pytest.raises(FileNotFoundError, match="image folder 'nowhere' does not exist"):
        pictures(Path('nowhere'))
    (tmp_path.parent / 'val.json').write_text('{}')
    with pytest.raises(ValueError, match=r"val.json': is a file; must be a folder of pictures. Of an annotation file"):
        pictures(tmp_path.parent / 'val.json')
    with pytest.raises(ValueError, match='has no pictures; give others with --images FOLDER'):
        pictures(tmp_path)
    cfg.pop('train_dataloader')
    with pytest.raises(ValueError, match='the config has no train_dataloader: give pictures with --images FOLDER'):
        pictures()
