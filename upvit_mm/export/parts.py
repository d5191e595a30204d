"""What can be exported: a backbone's maps, a neck's maps, or a whole classifier."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import check_state, load_classifier, model_state, read_checkpoint
from upvit_mm.models.network import Network, load_network, maps_of
from upvit_mm.registry import MODELS, scope_of
from upvit_mm.version import __version__

NEEDED = {'neck': ('mmdet', 'neck'), 'classifier': ('mmpretrain', 'head')}  # framework and field of model


class Maps(nn.Module):
    """A backbone's maps, or those of its neck; in evaluation mode."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None = None):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = maps_of(self.backbone, image, self.backbone.out_indices)
        return maps if self.neck is None else self.neck(maps)


@dataclass(frozen=True)
class Part:
    """A network to export.

    Attributes:
        kind: of ``EXPORTED`` (``choices.py``).
        network: its backbone, preprocessing and origin.
        model: module from images ``(B, c, h, w)``, preprocessed, to the outputs; in evaluation mode.
        outputs: names of maps ``(B, C, H, W)``, finest first, or of logits ``(B, classes)``.
    """

    kind: str
    network: Network
    model: nn.Module
    outputs: tuple[str, ...]

    def images(self, height: int, width: int, batch: int = 1) -> Tensor:
        """Random images, as preprocessed ones look to the network.

        Raises:
            ValueError: a side below the backbone's smallest.
        """
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, self.network.arch.in_channels, height, width, generator=generator)
        self.network.backbone.check_image(images)
        return images

    @torch.no_grad()
    def run(self, images: Tensor) -> list[Tensor]:
        """The outputs, in the order of their names."""
        found = self.model(images)
        return [found] if isinstance(found, Tensor) else list(found)

    def metadata(self) -> dict[str, str]:
        """The origin of the network, and how pixels become its input: ``(pixels - mean) / std``."""
        colours, record = self.network.colours, self.network.record
        return {
            'upvit_mm_version': __version__,
            'part': self.kind,
            'arch_name': self.network.arch.name or 'custom',
            'arch': json.dumps(record['arch']),
            'config': str(record['config']),
            'checkpoint': record['checkpoint'],
            'checkpoint_sha256': record.get('sha256', ''),
            'channel_order': 'RGB' if colours.flip else 'BGR',
            'mean': json.dumps(colours.mean),
            'std': json.dumps(colours.std),
        }


def load_part(kind: str, config: str, checkpoint: str, options: Mapping[str, Any] | None = None) -> Part:
    """A part of a trained detector or classifier.

    Args:
        kind: of ``EXPORTED`` (``choices.py``).
        config: of mmdet (backbone, neck) or mmpretrain (backbone, classifier), with one of our backbones.
        checkpoint: its weights, in any layout that ``upvit_mm.checkpoints`` knows; a neck's under ``neck.``.
        options: settings of the config to override, by dotted key.

    Raises:
        FileNotFoundError: no such config or checkpoint.
        ValueError: the config has no backbone of ours, or not this part, or the checkpoint does not fit.
    """
    network = load_network(config, checkpoint, options)
    if kind == 'backbone':
        name = 'stage' if network.arch.num_stages > 1 else 'block'
        outputs = tuple(f'{name}{i + 1}' for i in network.backbone.out_indices)
        return Part(kind, network, Maps(network.backbone), outputs)
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(options or {}))
    framework, field = NEEDED[kind]
    if scope_of(cfg) != framework or not cfg.model.get(field):
        raise ValueError(
            f'{config!r} has no {kind} to export: that needs a config of {framework} with model.{field}; of this one '
            f'(default_scope = {scope_of(cfg)!r}) export another part.'
        )
    init_default_scope(framework)
    with torch.random.fork_rng(devices=[]):
        if kind == 'classifier':
            return Part(kind, network, _classifier(cfg, checkpoint), ('logits',))
        model = Maps(network.backbone, _neck(cfg, checkpoint, network.arch))
        return Part(kind, network, model, _levels(model))


def _neck(cfg: Config, checkpoint: str, arch: ArchSpec) -> nn.Module:
    neck = MODELS.build(cfg.model.neck)
    tensors = model_state(read_checkpoint(checkpoint), {}, {'backbone.': arch}, checkpoint)
    state = {k.removeprefix('neck.'): v for k, v in tensors.items() if k.startswith('neck.')}
    check_state(state, neck.state_dict(), f'the neck of {cfg.filename} (checkpoint={checkpoint})')
    neck.load_state_dict(state)
    return neck


@torch.no_grad()
def _levels(model: Maps) -> tuple[str, ...]:
    """Names of a neck's maps, ``p2`` for stride 4 and so on; each has twice the stride of the one before."""
    side = 2 * model.backbone.smallest_side
    maps = model(torch.zeros(1, model.backbone.arch.in_channels, side, side))
    finest = round(math.log2(side / maps[0].shape[2]))
    return tuple(f'p{finest + k}' for k in range(len(maps)))


def _classifier(cfg: Config, checkpoint: str) -> nn.Module:
    settings = dict(cfg.model)
    if 'teacher' in settings:
        settings['teacher'] = None
    model = MODELS.build(settings)
    state = load_classifier(checkpoint, arch=model.backbone.arch)
    check_state(state, model.state_dict(), f'the classifier of {cfg.filename} (checkpoint={checkpoint})')
    model.load_state_dict(state)
    return model.eval()
