"""Image sets of pruning: the proxy set, for scoring, and held-out images, for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

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
from upvit_mm.data.reading import WORKERS, read_all
from upvit_mm.models.network import preprocessing_of
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew

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
    cfg: Config,
    per_class: int,
    seed: int,
    batch_size: int = 32,
    device: str = 'cpu',
    size: Size | None = None,
    **reading: Any,
) -> ImageSet:
    """``per_class`` random training images of every class; ``size`` as in ``image_pipeline``, ``reading`` (``workers``,
    ``crew``) as in ``ImageSet``.

    Raises:
        ValueError: see ``choose_images`` and ``ImageSet``.
    """

    def choose(labels: np.ndarray) -> list[int]:
        return choose_images(labels, per_class, seed, cfg.model.head.num_classes)

    return ImageSet(cfg, part_data(cfg, 'train'), choose, batch_size, device, size, **reading).read()


def held_out_set(
    cfg: Config, count: int | None, seed: int, batch_size: int = 32, device: str = 'cpu', workers: int = WORKERS
) -> ImageSet:
    """At most ``count`` random images of the validation set (None = all), on which results are reported.

    Raises:
        ValueError: see ``ImageSet``.
    """
    choose = _random_numbers(seed, 0, count)
    return ImageSet(cfg, part_data(cfg, 'val'), choose, batch_size, device, workers=workers).read()


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
    workers: int = WORKERS,
    crew: Crew = Crew(),  # noqa: B008 (a frozen value)
) -> tuple[ImageSet, ImageSet]:
    """A proxy set of ``count`` random images of a plain folder, and at most ``eval_count`` others of it
    (None = all), which have the config's size and are read when they are needed.

    Without labels there is no class balance and no accuracy. ``workers`` and ``crew`` as in ``ImageSet``.

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
    choose = _random_numbers(seed, 0, count)
    proxy = ImageSet(cfg, dataset, choose, batch_size, device, size, workers, crew).read()
    logger.info('%s: images without labels, so the proxy set is not balanced over classes', folder)
    last = None if eval_count is None else count + eval_count
    return proxy, ImageSet(cfg, dataset, _random_numbers(seed, count, last), batch_size, device, workers=workers)


def _random_numbers(seed: int, start: int, stop: int | None) -> Callable[[Sequence], list[int]]:
    """A function from all images to those at these positions of a random order."""
    return lambda images: np.sort(np.random.default_rng(seed).permutation(len(images))[start:stop]).tolist()


class ImageSet(Sequence[Batch]):
    """Some images of an mmpretrain dataset after the config's test transforms, kept as uint8; a sequence of batches.

    The pixels go to the device as uint8 and are normalised there. Several processes need all images only together: each
    reads those of every ``crew.size``-th batch at first, and others when it is asked for them.

    Args:
        cfg: an mmpretrain classifier config; gives transforms and preprocessing.
        dataset: settings of the dataset.
        choose: function from the labels of all its images (or from the images, without labels) to the indices of those
            to read.
        batch_size: images per batch.
        device: device of the batches.
        size: see ``image_pipeline``.
        workers: threads that read, see ``read_all``.
        crew: the processes that use the same set; all must call ``read`` at the same time.
    """

    def __init__(
        self,
        cfg: Config,
        dataset: dict,
        choose: Callable[..., Sequence[int]],
        batch_size: int,
        device: str = 'cpu',
        size: Size | None = None,
        workers: int = WORKERS,
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ):
        from mmpretrain.registry import DATASETS, MODELS

        if evaluation_part(cfg) == 'val':
            logger.info('the config has no test_dataloader: images are prepared like those of val_dataloader')
        dataset, pipeline = unwrapped(dataset), image_pipeline(cfg, size)
        self.dataset = DATASETS.build(dict(dataset, pipeline=pipeline, _scope_='mmpretrain'))
        self.labels = np.asarray(self.dataset.get_gt_labels()) if dataset.get('with_label', True) else None
        self._chosen = list(choose(range(len(self.dataset)) if self.labels is None else self.labels))
        preprocessor = MODELS.build({'type': 'mmpretrain.ClsDataPreprocessor', **preprocessing_of(cfg)})
        self.preprocessor = preprocessor.to(device)
        self.batch_size, self.device, self.workers, self.crew = batch_size, device, workers, crew
        self._images: dict[int, Tensor] = {}

    @cached_property
    def numbers(self) -> list[int]:
        """Numbers of the images in their data set, in order; without those that cannot be read.

        Raises:
            ValueError: more than 1 % of the images cannot be read.
        """
        mine = [n for k, n in enumerate(self._chosen) if k // self.batch_size % self.crew.size == self.crew.rank]
        self._images, unreadable = read_all(self._load, mine, self.workers)
        reasons = {n: reason for theirs in self.crew.gather(unreadable) for n, reason in theirs.items()}
        leave_out({Path(self._path(n)): reasons[n] for n in sorted(reasons)}, len(self._chosen))
        return [n for n in self._chosen if n not in reasons]

    def read(self) -> ImageSet:
        """The same set, after this process's share of the images has been read; raises as ``numbers`` does."""
        assert self.numbers is not None
        return self

    @property
    def paths(self) -> list[str]:
        """The images' files, for the record."""
        return list(map(self._path, self.numbers))

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.numbers) // self.batch_size)

    def size_of(self, k: int) -> int:
        """Images in batch k."""
        return len(self.numbers[k * self.batch_size : (k + 1) * self.batch_size])

    def __getitem__(self, k: int) -> Batch:
        if not 0 <= k < len(self):
            raise IndexError(k)
        numbers = self.numbers[k * self.batch_size : (k + 1) * self.batch_size]
        more, unreadable = read_all(self._load, [n for n in numbers if n not in self._images], self.workers)
        for number, reason in unreadable.items():
            raise ValueError(f'{self._path(number)} cannot be read ({reason}), and another process could read it.')
        self._images |= more
        pixels = [self._images[n] for n in numbers]
        inputs = pixels
        if len({image.shape for image in pixels}) == 1:
            inputs = torch.stack(pixels).to(self.device, non_blocking=True)
        inputs = self.preprocessor({'inputs': inputs, 'data_samples': None}, training=False)['inputs']
        labels = None if self.labels is None else torch.as_tensor(self.labels[numbers])
        return Batch(inputs, numbers, labels)

    def _load(self, number: int) -> Tensor:
        """An image as uint8."""
        return self.dataset[number]['inputs']

    def _path(self, number: int) -> str:
        return str(self.dataset.get_data_info(number).get('img_path', number))
