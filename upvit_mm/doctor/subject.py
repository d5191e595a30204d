"""The config to check, and the parts of it that several checks need."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.optim import OptimWrapper
    from torch import nn

PARTS = ('train', 'val', 'test')
SCOPES = ('mmdet', 'mmpretrain')
BOXES = 32  # objects in a random image


@dataclass(frozen=True)
class Subject:
    """A config of mmdet or mmpretrain; everything is built only once.

    Attributes:
        config: its file.
        checkpoint: weights to check; None for those that the config's model loads.
        batch_size: images per GPU; None = the config's.
        gpus: number of GPUs of the training; None = those of this machine, at least 1.
        options: arguments of ``--cfg-options``.

    Raises:
        ValueError: a number below 1.
    """

    config: str
    checkpoint: str | None = None
    batch_size: int | None = None
    gpus: int | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ('batch_size', 'gpus'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'{name} = {value}: must be at least 1.')

    @cached_property
    def cfg(self) -> Config:
        """The config with the options, as the tools read it.

        Raises:
            FileNotFoundError: it does not exist.
            ImportError: OpenMMLab is not installed.
            ValueError: it belongs to another package.
        """
        from mmengine.registry import init_default_scope

        from upvit_mm.arguments import add_run_arguments
        from upvit_mm.registry import scope_of
        from upvit_mm.runner import load_config

        parser = argparse.ArgumentParser()
        parser.add_argument('config')
        add_run_arguments(parser)
        options = ['--cfg-options', *self.options] if self.options else []
        cfg = load_config(parser.parse_args([self.config, *options]))
        scope = cfg.default_scope = scope_of(cfg)
        if scope not in SCOPES:
            raise ValueError(
                f'default_scope = {scope!r}: must be {" or ".join(SCOPES)}; inherit its default_runtime.py.'
            )
        init_default_scope(scope)
        return cfg

    @property
    def detects(self) -> bool:
        return self.cfg.default_scope == 'mmdet'

    @cached_property
    def model(self) -> nn.Module:
        """The model as a Runner builds it, in training mode, always with the same random weights."""
        import torch
        from mmengine.registry import MODELS

        settings = copy.deepcopy(self.cfg.model)
        if self.cfg.get('data_preprocessor') is not None:
            settings.setdefault('data_preprocessor', copy.deepcopy(self.cfg.data_preprocessor))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return MODELS.build(settings).train()

    @cached_property
    def optim_wrapper(self) -> OptimWrapper:
        """The optimizer with the groups of a training, without AMP, because not every machine has it."""
        from mmengine.optim import build_optim_wrapper

        from upvit_mm.optim import limit_decay

        names = ('optimizer', 'paramwise_cfg', 'constructor')
        settings = {name: self.cfg.optim_wrapper[name] for name in names if name in self.cfg.optim_wrapper}
        built = build_optim_wrapper(self.model, dict(type='OptimWrapper', **settings))
        return limit_decay(built, self.model)

    @property
    def images_per_gpu(self) -> int:
        return self.batch_size or self.cfg.train_dataloader.batch_size

    @property
    def processes(self) -> int:
        import torch

        return self.gpus or max(torch.cuda.device_count(), 1)

    def datasets(self, part: str) -> list[Mapping[str, Any]]:
        """Settings of the innermost datasets of a part; none when the config does not have the part."""
        from upvit_mm.data.datasets import datasets_of

        return list(datasets_of(self.cfg.get(f'{part}_dataloader')))

    @property
    def parts(self) -> dict[str, str]:
        """Names of the config's parts; two parts with the same data have one name."""
        parts = {part: part for part in PARTS if self.datasets(part)}
        if len(parts) > 1 and self.datasets('val') == self.datasets('test'):
            del parts['test']
            parts['val'] = 'val and test'
        return parts

    def random_batch(self, height: int, width: int) -> dict[str, Any]:
        """One image of noise with everything that a loss needs, in the form of a loader's batch."""
        if not self.detects:
            import torch
            from mmpretrain.structures import DataSample

            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
            return {'inputs': [image], 'data_samples': [DataSample().set_gt_label(0)]}
        from mmdet.testing import demo_mm_inputs

        batch = demo_mm_inputs(1, [(3, height, width)], num_items=[BOXES], num_classes=2, with_mask=True)
        for sample in batch['data_samples']:
            sample.gt_instances.labels.zero_()  # a class that every head has
        return batch
