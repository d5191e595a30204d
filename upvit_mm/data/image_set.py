"""Image sets of pruning: the proxy set, on which importance is scored, and held-out images, on which it is judged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

logger = logging.getLogger('upvit_mm')
MAX_UNREADABLE = 0.01  # share


def choose_images(labels: Sequence[int], per_class: int, seed: int, num_classes: int) -> list[int]:
    """Numbers of ``per_class`` random images of every class, sorted.

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
            raise ValueError(f'class {label} has {len(members)} images: {per_class} of every class are wanted.')
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen)).tolist()


def proxy_set(cfg: Config, per_class: int, seed: int, batch_size: int = 32) -> ImageSet:
    """``per_class`` random training images of every class.

    Raises:
        ValueError: see ``choose_images`` and ``ImageSet``.
    """

    def choose(labels: np.ndarray) -> list[int]:
        return choose_images(labels, per_class, seed, cfg.model.head.num_classes)

    return ImageSet(cfg, cfg.train_dataloader.dataset, choose, batch_size)


def held_out_set(cfg: Config, count: int, seed: int, batch_size: int = 32) -> ImageSet:
    """At most ``count`` random images of the validation set, on which results are reported.

    Raises:
        ValueError: see ``ImageSet``.
    """

    def choose(labels: np.ndarray) -> list[int]:
        order = np.random.default_rng(seed).permutation(len(labels))
        return np.sort(order[:count]).tolist()

    return ImageSet(cfg, cfg.val_dataloader.dataset, choose, batch_size)


class ImageSet:
    """Some images of an mmpretrain dataset, in the config's test transforms, held as uint8.

    Args:
        cfg: an mmpretrain classifier config; gives transforms and preprocessing.
        dataset: settings of the dataset.
        choose: from the labels of all its images to the numbers of those to read.
        batch_size: images that are given at once.

    Raises:
        ValueError: more than 1 % of the images cannot be read.
    """

    def __init__(self, cfg: Config, dataset: dict, choose: Callable[[np.ndarray], Sequence[int]], batch_size: int):
        from mmpretrain.registry import DATASETS, MODELS

        pipeline = cfg.test_dataloader.dataset.pipeline
        self.dataset = DATASETS.build(dict(dataset, pipeline=pipeline, _scope_='mmpretrain'))
        self.labels = np.asarray(self.dataset.get_gt_labels())
        self.numbers = list(choose(self.labels))
        preprocessor = dict(cfg.get('data_preprocessor') or {})
        self.preprocessor = MODELS.build({'type': 'mmpretrain.ClsDataPreprocessor', **preprocessor})
        self.batch_size = batch_size
        self._images = self._read()

    @property
    def paths(self) -> list[str]:
        """The images' files, for the record."""
        return [str(self.dataset.get_data_info(n).get('img_path', n)) for n in self.numbers]

    def batches(self, device: str = 'cpu', dtype: torch.dtype = torch.float32) -> Iterator[tuple[Tensor, list[int]]]:
        """Images ``(B, 3, h, w)`` and their numbers in the dataset."""
        for start in range(0, len(self.numbers), self.batch_size):
            inputs = self._images[start : start + self.batch_size]
            batch = self.preprocessor({'inputs': inputs, 'data_samples': None}, training=False)
            yield batch['inputs'].to(device, dtype), self.numbers[start : start + self.batch_size]

    def _read(self) -> list[Tensor]:
        """Every image as uint8; unreadable ones are left out, listed, and too many of them are an error."""
        images, unreadable = {}, []
        for number in self.numbers:
            try:
                images[number] = self.dataset[number]['inputs']
            except Exception as error:  # decoders raise what they like
                unreadable.append(Path(str(self.dataset.get_data_info(number).get('img_path', number))))
                logger.warning('%s cannot be read and is left out (%s)', unreadable[-1], error)
        if len(unreadable) > MAX_UNREADABLE * len(self.numbers):
            raise ValueError(
                f'{len(unreadable)} of {len(self.numbers)} images cannot be read, {unreadable[0]} among them; repair '
                'the data.'
            )
        self.numbers = list(images)
        return list(images.values())
