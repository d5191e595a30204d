"""The images of a pruning job, and their identity: results made from other images are not reused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from mmengine.config import Config
from torch import nn

from upvit_mm.data.datasets import datasets_in
from upvit_mm.data.identity import identity_of
from upvit_mm.data.image_set import ImageSet, folder_sets, held_out_set, part_data, proxy_set
from upvit_mm.data.picture_set import PictureSet
from upvit_mm.data.pipelines import image_pipeline, picture_pipeline
from upvit_mm.models.detector_loss import DetectorLoss
from upvit_mm.models.network import preprocessing_of
from upvit_mm.pruning.crew import Crew
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.prune_settings import PruneSettings


class JobImages(ABC):
    """Images of a config's data, or of the plain folder of the settings; read when they are first used.

    Args:
        cfg: the config of the dense network.
        settings: settings of the job.
        ledger: ledger of its work dir.
        crew: the processes that share the images; all must use ``proxy`` for the first time together.

    Attributes:
        seen: identities of the data sets that were read, for the ledger.
    """

    def __init__(self, cfg: Config, settings: PruneSettings, ledger: Ledger, crew: Crew = Crew()):  # noqa: B008
        self.cfg, self.settings, self.ledger, self.crew = cfg, settings, ledger, crew
        self.seen: dict[str, str] = {}

    @property
    @abstractmethod
    def proxy(self) -> ImageSet | PictureSet:
        """Images for scoring and compensation."""

    @property
    @abstractmethod
    def proxy_data(self) -> list[Any]:
        """Plain data that decide the content of ``proxy``."""

    @property
    @abstractmethod
    def held_out_data(self) -> list[Any]:
        """Plain data that decide on which images the results are evaluated."""

    @property
    @abstractmethod
    def held_out_count(self) -> int | None:
        """How many images that are; None = the whole test set."""

    def _identity_of(self, dataset: Mapping[str, Any]) -> str | None:
        """Identity of a data set; if its files are gone, the identity that this work dir saw last.

        So finished work needs no data.
        """
        name, found = fingerprint(dataset), identity_of(dataset)
        if found is None:
            return self.ledger.data_seen(name)
        self.seen[name] = found
        return found


def plain_folder(folder: str) -> dict[str, Any]:
    """Settings of the data set of a plain folder of images."""
    return dict(type='CustomDataset', data_root=folder, with_label=False)


class ClassifierImages(JobImages):
    """Images of a classifier's data."""

    @cached_property
    def proxy(self) -> ImageSet:
        s = self.settings
        if s.images:
            return self._folder_sets[0]
        how = (s.seed, s.batch_size, s.device, s.side_lengths)
        return proxy_set(self.cfg, s.per_class, *how, workers=s.workers, crew=self.crew)

    @cached_property
    def held_out(self) -> ImageSet:
        """Images for evaluation."""
        s = self.settings
        if s.images:
            return self._folder_sets[1]
        return held_out_set(self.cfg, s.eval_images, s.seed, s.batch_size, s.device, s.workers)

    @cached_property
    def proxy_data(self) -> list[Any]:
        return self._data('train', 'per_class')

    @cached_property
    def held_out_data(self) -> list[Any]:
        return self._data('val', 'eval_images')

    @property
    def held_out_count(self) -> int:
        return len(self.held_out.numbers)

    @cached_property
    def _folder_sets(self) -> tuple[ImageSet, ImageSet]:
        s = self.settings
        counts = (s.num_images, s.eval_images, s.seed, s.batch_size)
        return folder_sets(self.cfg, s.images, *counts, s.device, s.side_lengths, s.workers, self.crew)

    def _data(self, part: str, count: str) -> list[Any]:
        s = self.settings
        dataset = plain_folder(s.images) if s.images else part_data(self.cfg, part)
        size = s.side_lengths if part == 'train' else None
        pixels = [image_pipeline(self.cfg, size), preprocessing_of(self.cfg)]
        return [self._identity_of(dataset), str(pixels), s.some(count, 'num_images', 'seed', 'batch_size')]


class DetectorImages(JobImages):
    """Pictures of a detector's training data, and its test set.

    Args:
        cfg: config of the dense detector, of mmdet.
        settings: settings of the job.
        ledger: ledger of its work dir.
        preprocessor: the detector's.
        crew: see ``JobImages``.
    """

    def __init__(
        self,
        cfg: Config,
        settings: PruneSettings,
        ledger: Ledger,
        preprocessor: nn.Module,
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ):
        super().__init__(cfg, settings, ledger, crew)
        self.preprocessor = preprocessor

    @cached_property
    def proxy(self) -> PictureSet:
        s = self.settings
        how = (s.num_images, s.seed, s.batch_size, s.device, s.side_lengths, self._labelled, s.workers, self.crew)
        return PictureSet(self.cfg, self.preprocessor, s.images, *how)

    @cached_property
    def proxy_data(self) -> list[Any]:
        s = self.settings
        sets = [plain_folder(s.images)] if s.images else [d.settings for d in datasets_in(self.cfg, 'train')]
        pixels = [picture_pipeline(self.cfg, s.side_lengths, self._labelled), preprocessing_of(self.cfg)]
        counts = s.some('num_images', 'seed', 'batch_size')
        return [*map(self._identity_of, sets), str(pixels), counts]

    @property
    def _labelled(self) -> bool:
        return self.settings.criterion == DetectorLoss.name

    @cached_property
    def held_out_data(self) -> list[Any]:
        sets = [d.settings for d in datasets_in(self.cfg, 'test')]
        return [*map(self._identity_of, sets), self.settings.some('eval_images')]

    @property
    def held_out_count(self) -> int | None:
        return self.settings.eval_images
