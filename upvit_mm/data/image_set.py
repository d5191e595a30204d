"""Image sets of pruning: the proxy set, for scoring, and held-out images, for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from upvit_mm.arch.size import Size
from upvit_mm.data.datasets import evaluation_part, unwrapped
from upvit_mm.data.picture_files import (
    PICTURE_ENDINGS,
    check_litter,
    counts_text,
    leave_out,
    look_through,
    require_picture_folder,
)
from upvit_mm.data.pipelines import image_pipeline
from upvit_mm.models.network import preprocessing_of
from upvit_mm.pruning.batch import Batch

logger = logging.getLogger('upvit_mm')


def choose_images(labels: Sequence[int], per_class: int, seed: int, num_classes: int) -> list[int]:
    """Sorted indices of ``per_class`` random images of every class.

    Raises:
        ValueError: ``per_class`` below 1, or a class with fewer images.
    """
    if per_class < 1:
        raise ValueError(f'per_class = {per_class}: must be at least 1.')
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise ValueError(
                f'class {label} has {len(members)} training images: {per_class} of every class are wanted. Give more '
                'images, or a smaller number with --per-class.'
            )
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen)).tolist()


def proxy_set(
    cfg: Config, per_class: int, seed: int, batch_size: int = 32, device: str = 'cpu', size: Size | None = None
) -> ImageSet:
    """``per_class`` random training images of every class; ``size`` as in ``image_pipeline``.

    Raises:
        ValueError: see ``choose_images`` and ``ImageSet``.
    """

    def choose(labels: np.ndarray) -> list[int]:
        return choose_images(labels, per_class, seed, cfg.model.head.num_classes)

    return ImageSet(cfg, part_data(cfg, 'train'), choose, batch_size, device, size)


def held_out_set(cfg: Config, count: int | None, seed: int, batch_size: int = 32, device: str = 'cpu') -> ImageSet:
    """At most ``count`` random images of the validation set (None = all), on which results are reported.

    Raises:
        ValueError: see ``ImageSet``.
    """
    return ImageSet(cfg, part_data(cfg, 'val'), _random_numbers(seed, 0, count), batch_size, device)


def part_data(cfg: Config, part: str) -> dict:
    """Settings of the dataset of ``'train'`` or ``'val'``.

    Raises:
        ValueError: the config does not have the part.
    """
    if not cfg.get(f'{part}_dataloader'):
        remedy = 'set --eval-images 0, or ' if part == 'val' else ''
        raise ValueError(f'the config has no {part}_dataloader: {remedy}give one, or take --images FOLDER.')
    return cfg[f'{part}_dataloader'].dataset


def folder_sets(
    cfg: Config,
    folder: str,
    count: int,
    eval_count: int | None,
    seed: int,
    batch_size: int = 32,
    device: str = 'cpu',
    size: Size | None = None,
) -> tuple[ImageSet, ImageSet]:
    """A proxy set of ``count`` random images of a plain folder, and at most ``eval_count`` others of it
    (None = all), which have the config's size.

    Without labels there is no class balance and no accuracy.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it has fewer than ``count + 1`` images, or folders of other programs; see ``ImageSet``.
    """
    require_picture_folder(Path(folder))
    found = look_through(folder, PICTURE_ENDINGS)
    check_litter(Path(folder), found.litter, 'their images would be used too')
    if found.others:
        logger.info('%s: left out because of their endings: %s', folder, counts_text(found.others))
    if found.pictures <= count:
        raise ValueError(
            f'image folder {folder!r} has {found.pictures} images: {count} for the proxy set are wanted, and others '
            f'for evaluation. Files are read that end in {", ".join(PICTURE_ENDINGS)}.'
        )
    dataset = dict(type='CustomDataset', data_root=folder, with_label=False, extensions=PICTURE_ENDINGS)
    proxy = ImageSet(cfg, dataset, _random_numbers(seed, 0, count), batch_size, device, size)
    logger.info('%s: images without labels, so the proxy set is not balanced over classes', folder)
    last = None if eval_count is None else count + eval_count
    return proxy, ImageSet(cfg, dataset, _random_numbers(seed, count, last), batch_size, device)


def _random_numbers(seed: int, start: int, stop: int | None) -> Callable[[Sequence], list[int]]:
    """A function from all images to those at these positions of a random order."""
    return lambda images: np.sort(np.random.default_rng(seed).permutation(len(images))[start:stop]).tolist()


class ImageSet(Sequence[Batch]):
    """Some images of an mmpretrain dataset after the config's test transforms, kept as uint8; a sequence of batches.

    Args:
        cfg: an mmpretrain classifier config; gives transforms and preprocessing.
        dataset: settings of the dataset.
        choose: function from the labels of all its images (or from the images, without labels) to the indices of those
            to read.
        batch_size: images per batch.
        device: device of the batches.
        size: see ``image_pipeline``.

    Raises:
        ValueError: more than 1 % of the images cannot be read.
    """

    def __init__(
        self,
        cfg: Config,
        dataset: dict,
        choose: Callable[..., Sequence[int]],
        batch_size: int,
        device: str = 'cpu',
        size: Size | None = None,
    ):
        from mmpretrain.registry import DATASETS, MODELS

        if evaluation_part(cfg) == 'val':
            logger.info('the config has no test_dataloader: images are prepared like those of val_dataloader')
        dataset, pipeline = unwrapped(dataset), image_pipeline(cfg, size)
        self.dataset = DATASETS.build(dict(dataset, pipeline=pipeline, _scope_='mmpretrain'))
        self.labels = np.asarray(self.dataset.get_gt_labels()) if dataset.get('with_label', True) else None
        self.numbers = list(choose(range(len(self.dataset)) if self.labels is None else self.labels))
        self.preprocessor = MODELS.build({'type': 'mmpretrain.ClsDataPreprocessor', **preprocessing_of(cfg)})
        self.batch_size, self.device = batch_size, device
        self._images = self._read()

    @property
    def paths(self) -> list[str]:
        """The images' files, for the record."""
        return [str(self.dataset.get_data_info(n).get('img_path', n)) for n in self.numbers]

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.numbers) // self.batch_size)

    def size_of(self, k: int) -> int:
        """Images in batch k."""
        return len(self.numbers[k * self.batch_size : (k + 1) * self.batch_size])

    def __getitem__(self, k: int) -> Batch:
        if not 0 <= k < len(self):
            raise IndexError(k)
        part = slice(k * self.batch_size, (k + 1) * self.batch_size)
        inputs = self.preprocessor({'inputs': self._images[part], 'data_samples': None}, training=False)['inputs']
        numbers = self.numbers[part]
        labels = None if self.labels is None else torch.as_tensor(self.labels[numbers])
        return Batch(inputs.to(self.device), numbers, labels)

    def _read(self) -> list[Tensor]:
        """Every image as uint8. Unreadable ones are left out and listed; too many of them are an error."""
        images, unreadable = {}, {}
        for number in self.numbers:
            try:
                images[number] = self.dataset[number]['inputs']
            except Exception as error:  # decoders raise what they like
                unreadable[Path(str(self.dataset.get_data_info(number).get('img_path', number)))] = error
        leave_out(unreadable, len(self.numbers))
        self.numbers = list(images)
        return list(images.values())
