"""The proxy set of a detector: pictures as it sees them in a test."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope
from torch import nn

from upvit_mm.arch.size import Size
from upvit_mm.data.datasets import datasets_in
from upvit_mm.data.picture_files import PICTURE_ENDINGS, check_litter, leave_out, look_through, require_picture_folder
from upvit_mm.data.pipelines import picture_pipeline
from upvit_mm.data.reading import WORKERS, read_all
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew

Packed = dict[str, Any]  # what a pipeline of mmdet gives for a picture
logger = logging.getLogger('upvit_mm')


class PictureSet(Sequence[Batch]):
    """Some random pictures after a detector's test transforms, kept as uint8; a sequence of batches.

    All pictures of a batch have the same size. So a batch is padded like a single picture in a test. The pixels go to
    the device as uint8 and are normalised there. Of several processes each reads its share at first, and others when it
    is asked for them.

    Args:
        cfg: of mmdet; gives the transforms and, without ``folder``, the training data.
        preprocessor: the detector's.
        folder: plain folder of pictures to use instead; None = the training data.
        count: largest number of pictures.
        seed: seed of the choice.
        batch_size: largest number of pictures in a batch.
        device: device of the batches.
        size: see ``picture_pipeline``.
        labelled: whether batches have annotated samples; not for a folder.
        workers: threads that read, see ``read_all``.
        crew: the processes that use the same set; all must make it at the same time.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there are no pictures, or more than 1 % of them cannot be read; see ``picture_pipeline``.
    """

    def __init__(
        self,
        cfg: Config,
        preprocessor: nn.Module,
        folder: str | None,
        count: int,
        seed: int,
        batch_size: int,
        device: str = 'cpu',
        size: Size | None = None,
        labelled: bool = False,
        workers: int = WORKERS,
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ):
        init_default_scope('mmdet')
        self._source = _Folder(Path(folder)) if folder else _TrainingData(cfg, labelled)
        if (found := len(self._source)) < count:
            if not found:
                raise ValueError(f'{self._source.name} has no pictures; give others with --images FOLDER.')
            logger.warning(
                '%s has %d pictures, fewer than num_images = %d: all are used', self._source.name, found, count
            )
        chosen = np.sort(np.random.default_rng(seed).permutation(found)[:count]).tolist()
        self.preprocessor = copy.deepcopy(preprocessor).to(device)  # that of the detector stays where it is
        self.labelled, self.workers = labelled, workers
        self._transforms = Compose(picture_pipeline(cfg, size, labelled))
        self._packed, shapes = self._read(chosen, crew)
        self._batches = list(_grouped(shapes, batch_size))

    @property
    def numbers(self) -> list[int]:
        """Numbers of the pictures in their source, in the order of the batches."""
        return [number for batch in self._batches for number in batch]

    @property
    def paths(self) -> list[str]:
        """The pictures' files, for the record."""
        return list(map(self._path, self.numbers))

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def size_of(self, k: int) -> int:
        """Pictures in batch k."""
        return len(self._batches[k])

    def __getitem__(self, k: int) -> Batch:
        if not 0 <= k < len(self):
            raise IndexError(k)
        numbers = self._batches[k]
        more, unreadable = read_all(self._load, [n for n in numbers if n not in self._packed], self.workers)
        for number, reason in unreadable.items():
            raise ValueError(f'{self._path(number)} cannot be read ({reason}), and another process could read it.')
        self._packed |= more
        packed = [self._packed[number] for number in numbers]
        data = {name: [item[name] for item in packed] for name in ('inputs', 'data_samples')}
        found = self.preprocessor(data, False)
        if self.labelled and getattr(self.preprocessor, 'pad_mask', False):
            self.preprocessor.pad_gt_masks(found['data_samples'])  # a test leaves them as they are
        sizes = [tuple(item['inputs'].shape[-2:]) for item in packed]
        samples = found['data_samples'] if self.labelled else None
        return Batch(found['inputs'], numbers, sizes=sizes, samples=samples)

    def _read(self, numbers: Sequence[int], crew: Crew) -> tuple[dict[int, Packed], dict[int, tuple[int, ...]]]:
        """This process's share of the pictures as uint8, and the shapes of all that can be read, in their order.

        Unreadable ones are left out and listed; too many of them are an error.
        """
        mine, unreadable = read_all(self._load, numbers[crew.rank :: crew.size], self.workers)
        everyones = crew.gather(({n: tuple(item['inputs'].shape) for n, item in mine.items()}, unreadable))
        shapes = {n: shape for theirs, _ in everyones for n, shape in theirs.items()}
        reasons = {n: reason for _, theirs in everyones for n, reason in theirs.items()}
        leave_out({Path(self._path(n)): reasons[n] for n in sorted(reasons)}, len(numbers))
        return mine, {n: shapes[n] for n in numbers if n in shapes}

    def _load(self, number: int) -> Packed:
        packed = self._transforms(self._source.info(number))
        if packed is None:
            raise ValueError('a transform of the test pipeline leaves it out')
        return packed

    def _path(self, number: int) -> str:
        return str(self._source.info(number).get('img_path', number))


def _grouped(shapes: Mapping[int, tuple[int, ...]], batch_size: int) -> Iterator[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, shape in shapes.items():
        groups.setdefault(shape, []).append(number)
    for group in groups.values():
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))


class _TrainingData:
    """The pictures of a config's training data, wrappers left out."""

    name = 'train_dataloader'

    def __init__(self, cfg: Config, labelled: bool):
        self._left_out = () if labelled else ('instances',)
        found = datasets_in(cfg, 'train')
        if not found:
            raise ValueError('the config has no train_dataloader: give pictures with --images FOLDER.')
        self._sets = [DATASETS.build(dict(d.settings, pipeline=[])) for d in found]

    def __len__(self) -> int:
        return sum(map(len, self._sets))

    def info(self, number: int) -> dict[str, Any]:
        for dataset in self._sets:
            if number < len(dataset):
                info: Mapping[str, Any] = dataset.get_data_info(number)
                return {key: value for key, value in info.items() if key not in self._left_out}
            number -= len(dataset)
        raise IndexError(number)


class _Folder:
    """The pictures of a folder and of the folders in it."""

    def __init__(self, folder: Path):
        require_picture_folder(folder)
        check_litter(folder, look_through(folder, PICTURE_ENDINGS).litter, 'their images would be used too')
        self.name = f'image folder {str(folder)!r}'
        self._paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in PICTURE_ENDINGS and p.is_file())

    def __len__(self) -> int:
        return len(self._paths)

    def info(self, number: int) -> dict[str, Any]:
        return {'img_path': str(self._paths[number]), 'img_id': number}
