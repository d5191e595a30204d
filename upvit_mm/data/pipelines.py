"""The transforms that prepare the pictures of a proxy set: those of a test, at another size or with labels if asked."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from upvit_mm.arch.size import Size
from upvit_mm.data.datasets import datasets_in, evaluation_part, transforms_of
from upvit_mm.registry import is_type

Pipeline = list[dict[str, Any]]
SHAPING = ('Resize', 'ResizeEdge', 'CenterCrop', 'RandomResizedCrop', 'RandomCrop', 'Pad')  # of classifiers
DIVISOR = 32  # pixels; the sides of a padded picture are multiples of it


def image_pipeline(cfg: Config, size: Size | None = None) -> Pipeline:
    """Transforms of a classifier's test part, or of validation without one.

    Args:
        cfg: of mmpretrain.
        size: ``(height, width)`` in pixels to which whole images are stretched, instead of resizing and cropping; None
            = as in the config.

    Raises:
        ValueError: the config has neither part.
    """
    steps = _steps(cfg)
    if size is None:
        return steps
    places = [k for k, step in enumerate(steps) if is_type(step['type'], *SHAPING, **_known(cfg))]
    first = places[0] if places else len(steps) - 1  # before the packing
    stretch = dict(type='Resize', scale=(size[1], size[0]), interpolation='bicubic')
    rest = [step for k, step in enumerate(steps) if k >= first and k not in places]
    return [*steps[:first], stretch, *rest]


def picture_pipeline(cfg: Config, size: Size | None = None, labelled: bool = False) -> Pipeline:
    """Transforms of a detector's test part, or of validation without one, without those that load annotations.

    Args:
        cfg: of mmdet.
        size: ``(height, width)`` in pixels of a landscape picture, in place of the scale of ``Resize``; None = as in
            the config.
        labelled: load annotations as the training part does, and change them like the pictures.

    Raises:
        ValueError: the config has neither part, no ``Resize`` with a scale, or no training part that loads annotations.
    """
    steps = [step for step in _steps(cfg) if not is_type(step['type'], 'LoadAnnotations', **_known(cfg))]
    if size is not None:
        steps = [_at_size(step, size, cfg) for step in steps]
        if not any(step.get('scale') == (size[1], size[0]) for step in steps):
            raise ValueError(
                f'size = {size[0]}x{size[1]}: the {evaluation_part(cfg)}_dataloader has no Resize with a scale, which '
                'could get it; leave it out.'
            )
    if labelled:
        steps.insert(1, _loading(cfg))  # after the picture, so that all later steps change both
    return steps


def _steps(cfg: Config) -> Pipeline:
    return [dict(step) for step in datasets_in(cfg, evaluation_part(cfg))[0].settings.get('pipeline', ())]


def _known(cfg: Config) -> dict[str, Any]:
    return dict(registry=TRANSFORMS, scope=cfg.get('default_scope'))


def _at_size(step: dict[str, Any], size: Size, cfg: Config) -> dict[str, Any]:
    if is_type(step['type'], 'Resize', **_known(cfg)) and isinstance(step.get('scale'), (list, tuple)):
        return {**step, 'scale': (size[1], size[0])}
    if is_type(step['type'], 'Pad', **_known(cfg)) and step.get('size'):
        return {key: value for key, value in step.items() if key != 'size'} | {'size_divisor': DIVISOR}
    return step


def _loading(cfg: Config) -> dict[str, Any]:
    for dataset in datasets_in(cfg, 'train'):
        for step in transforms_of(dataset.settings.get('pipeline', ())):
            if is_type(step.get('type'), 'LoadAnnotations', **_known(cfg)):
                return dict(step)
    raise ValueError(
        "criterion = 'loss': train_dataloader has no LoadAnnotations, and the loss needs labels; take --criterion "
        'tokens, which needs none.'
    )
