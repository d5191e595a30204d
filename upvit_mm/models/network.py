"""Backbones of trained classifiers and detectors, with the preprocessing that they were trained with."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.arch.family import FAMILIES
from upvit_mm.arch.size import Size
from upvit_mm.checkpoints import check_state, load_backbone
from upvit_mm.files import sha256_of
from upvit_mm.models.trained_detector import model_settings
from upvit_mm.pruning.costs import count_macs
from upvit_mm.registry import MODELS, backbone_types, class_of, families_of, type_name


def preprocessing_of(cfg: Config) -> dict[str, Any]:
    """The preprocessing of a config, as its runner uses it: the model's setting wins over the config's."""
    return dict(model_settings(cfg).get('data_preprocessor') or {})


class Colours(NamedTuple):
    """The preprocessing of pixels by a config's ``data_preprocessor``.

    Attributes:
        mean, std: per channel after the flip.
        flip: whether BGR becomes RGB.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    flip: bool = False

    @classmethod
    def of_config(cls, cfg: Config) -> Colours:
        """mmdet says ``bgr_to_rgb``, mmpretrain ``to_rgb``."""
        settings = preprocessing_of(cfg)
        flip = any(settings.get(name, False) for name in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
        return cls(tuple(settings.get('mean') or (0.0,)), tuple(settings.get('std') or (1.0,)), flip)

    def apply(self, images: Tensor) -> Tensor:
        """BGR pixels ``(B, 3, h, w)`` uint8 -> the input of the network, float32."""
        images = (images.flip(1) if self.flip else images).float()
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True)
class Network:
    """A backbone with its preprocessing.

    Attributes:
        backbone: one of ours, or ``TokenDropping``; in evaluation mode.
        colours: its preprocessing.
        record: its origin, plain data.
    """

    backbone: nn.Module
    colours: Colours = Colours()  # noqa: RUF009 (immutable)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def arch(self) -> ArchSpec:
        return self.backbone.arch

    @torch.no_grad()
    def maps(self, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Maps of BGR pixels ``(B, 3, h, w)`` uint8; see ``maps_of``."""
        device = next(self.backbone.parameters()).device
        return maps_of(self.backbone, self.colours.apply(images.to(device)), indices)

    def macs(self, size: Size) -> int:
        """Multiply-accumulates of one image of ``(height, width)`` pixels in the backbone, including its windows."""
        return macs_of(self.backbone, size)


def maps_of(backbone: nn.Module, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, ...]:
    """The maps ``(B, C_i, H_i, W_i)`` at the given ``out_indices``, whatever the backbone's own setting is.

    Args:
        backbone: one of ours, or ``TokenDropping``.
        images: ``(B, 3, h, w)``, preprocessed.
        indices: sorted, see ``common_stages``.
    """
    with _set(backbone, out_indices=tuple(indices), out_type='featmap'):
        return backbone(images)


def macs_of(backbone: nn.Module, size: Size) -> int:
    """Multiply-accumulates of one image of ``(height, width)`` pixels in a backbone of ours: its blocks up to the
    last output, with their windows."""
    if hasattr(backbone, 'macs'):  # it drops tokens
        return backbone.macs(size)
    return count_macs(backbone.arch, size, windows=backbone.windows, used=backbone.blocks_in_use())


def load_network(
    config: str | Path | Config,
    checkpoint: str,
    options: Mapping[str, Any] | None = None,
    arch: str | None = None,
    device: str = 'cpu',
) -> Network:
    """The backbone of a trained classifier or detector.

    Args:
        config: of mmdet or mmpretrain, with one of our backbones.
        checkpoint: file of the whole model or of the backbone, in any layout that ``upvit_mm.checkpoints`` knows.
        options: settings of the config to override, by dotted key.
        arch: stock name or ``arch.json`` to build instead of the config's; for a pruned checkpoint without a config.
        device: its device.

    Raises:
        FileNotFoundError: no such config, checkpoint or ``arch.json``.
        ValueError: the config's model has no backbone of ours, or the checkpoint does not fit.
    """
    name = getattr(config, 'filename', None) if isinstance(config, Config) else str(config)
    cfg = _read(config, options)
    settings = dict((cfg.get('model') or {}).get('backbone') or {})
    cls = _class_of(settings.pop('type', None), name)
    settings.pop('init_cfg', None)
    if arch is not None:
        settings['arch'] = resolve_arch(arch)
    with torch.random.fork_rng(devices=[]):
        backbone = cls(**settings)
    state = load_backbone(checkpoint, arch=backbone.arch)
    check_state(state, backbone.state_dict(), f'{cls.__name__} of {name} (checkpoint={checkpoint})')
    backbone.load_state_dict(state)
    record = {'config': name, 'checkpoint': str(checkpoint), 'arch': backbone.arch.to_dict()}
    if Path(checkpoint).is_file():
        record['sha256'] = sha256_of(checkpoint)
    return Network(backbone.to(device).eval(), Colours.of_config(cfg), record)


def _read(config: str | Path | Config, options: Mapping[str, Any] | None) -> Config:
    if not isinstance(config, Config):
        if not Path(config).is_file():
            raise FileNotFoundError(f'config {str(config)!r} does not exist; paths are relative to {Path.cwd()}.')
        config = Config.fromfile(config)
    cfg = copy.deepcopy(config)
    cfg.merge_from_dict(dict(options or {}))
    return cfg


def _class_of(kind: str | type | None, config: str | None) -> type:
    if kind is None:
        raise ValueError(f'config {config!r} has no model.backbone: give the config of a classifier or detector.')
    name = type_name(kind)
    if not families_of(kind):
        swaps = {upstream: family for family in reversed(FAMILIES.values()) for upstream in family.upstream}
        swap = swaps.get(name)
        raise ValueError(
            f'model.backbone.type = {name!r} in {config!r}: must be a backbone of this package. '
            + (
                f"Put backbone=dict(type='upvit_mm.{swap.backbone}', arch={swap.stock}) into the config; the "
                'checkpoint loads as it is.'
                if swap
                else f'Known are {backbone_types()}, and what they replace: {", ".join(swaps)}.'
            )
        )
    return class_of(kind, MODELS)


@contextlib.contextmanager
def _set(module: nn.Module, **settings) -> Iterator[None]:
    """Change attributes of a module inside the ``with`` block."""
    before = {name: getattr(module, name) for name in settings if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, settings[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
