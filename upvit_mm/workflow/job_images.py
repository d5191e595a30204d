"""The images of a pruning job, and their identity: results made from other images are not reused."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mmengine.config import Config

from upvit_mm.data.identity import identity_of
from upvit_mm.data.image_set import ImageSet, folder_sets, held_out_set, part_data, proxy_set, test_pipeline
from upvit_mm.models.network import preprocessing_of
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.prune_settings import PruneSettings


class JobImages:
    """Images of a config's data, or of the plain folder of the settings; read when they are first used.

    Args:
        cfg: mmpretrain config of the dense classifier.
        settings: settings of the job.
        ledger: ledger of its work dir.

    Attributes:
        seen: identities of the data sets that were read, for the ledger.
    """

    def __init__(self, cfg: Config, settings: PruneSettings, ledger: Ledger):
        self.cfg, self.settings, self.ledger = cfg, settings, ledger
        self.seen: dict[str, str] = {}

    @cached_property
    def proxy(self) -> ImageSet:
        """Images for scoring and compensation."""
        s = self.settings
        if s.images:
            return self._folder_sets[0]
        return proxy_set(self.cfg, s.per_class, s.seed, s.batch_size, s.device)

    @cached_property
    def held_out(self) -> ImageSet:
        """Images for evaluation."""
        s = self.settings
        if s.images:
            return self._folder_sets[1]
        return held_out_set(self.cfg, s.eval_images, s.seed, s.batch_size, s.device)

    @cached_property
    def proxy_data(self) -> list[Any]:
        """Plain data that decide the content of ``proxy``."""
        return self._data('train', 'per_class')

    @cached_property
    def held_out_data(self) -> list[Any]:
        """The same for ``held_out``."""
        return self._data('val', 'eval_images')

    @cached_property
    def _folder_sets(self) -> tuple[ImageSet, ImageSet]:
        s = self.settings
        return folder_sets(self.cfg, s.images, s.num_images, s.eval_images, s.seed, s.batch_size, s.device)

    def _data(self, part: str, count: str) -> list[Any]:
        pixels = [test_pipeline(self.cfg), preprocessing_of(self.cfg)]
        return [self._identity_of(part), str(pixels), self.settings.some(count, 'num_images', 'seed', 'batch_size')]

    def _identity_of(self, part: str) -> str | None:
        """Identity of the data; if they are gone, the identity that this work dir saw last.

        So finished work needs no data.
        """
        if self.settings.images:
            dataset = dict(type='CustomDataset', data_root=self.settings.images, with_label=False)
        else:
            dataset = part_data(self.cfg, part)
        name, found = fingerprint(dataset), identity_of(dataset)
        if found is None:
            return self.ledger.data_seen(name)
        self.seen[name] = found
        return found
