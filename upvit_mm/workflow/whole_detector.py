"""A whole detector as a network from images to detections, as in deployment, for timing and measuring."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import TRANSFORMS, init_default_scope
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from upvit_mm.arch.size import Size
from upvit_mm.data.datasets import datasets_in, evaluation_part
from upvit_mm.models.detector_loss import GivenMaps
from upvit_mm.models.trained_detector import model_settings
from upvit_mm.registry import is_type

logger = logging.getLogger('upvit_mm')


class WholeDetector(nn.Module):
    """From images to detections: backbone, neck, heads and non-maximum suppression.

    Args:
        detector: a detector of mmdet; it is set to evaluation mode.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector.eval()

    def forward(self, x: Tensor) -> list:
        """Normalised images ``(B, 3, h, w)``, padded like the detector's input -> a ``DetDataSample`` for each."""
        return self.detector.predict(x, _samples(x), rescale=True)


def map_outputs(detector: nn.Module, x: Tensor) -> object:
    """What a detector computes from its backbone's maps of normalised images ``(B, 3, h, w)``: those of the neck, else
    those of the heads; tensors in any nesting."""
    return detector.extract_feat(x) if detector.with_neck else detector(x, _samples(x), mode='tensor')


def macs_after_backbone(detector: nn.Module, size: Size) -> int | None:
    """Multiply-accumulates of neck and heads for one image, without the choice of boxes; counted by torch.

    Sampling, of deformable attention and RoIAlign, is not counted.

    Args:
        detector: of mmdet, in evaluation mode.
        size: ``(height, width)`` of the image in pixels, padding included.

    Returns:
        The number; None if the detector cannot run without predicting.
    """
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            maps = detector.backbone(x)
            with _given_maps(detector, maps), _frozen(detector), FlopCounterMode(display=False) as counter:
                detector(x, _samples(x), mode='tensor')
    except Exception as error:  # mmdet's detectors raise what they like for a mode that they do not have
        logger.warning('%s: its multiply-accumulates cannot be counted (%s)', type(detector).__name__, error)
        return None
    return counter.get_total_flops() // 2


@contextmanager
def _given_maps(detector: nn.Module, maps: Sequence[Tensor]) -> Iterator[None]:
    """The detector with these maps in place of its backbone's."""
    backbone = detector.backbone
    detector.backbone = GivenMaps(maps)
    try:
        yield
    finally:
        detector.backbone = backbone


@contextmanager
def _frozen(detector: nn.Module) -> Iterator[None]:
    """The detector with no parameter that is trained.

    torch's counter watches the gradients of what modules are given. DETRs give them parameters (queries), which have no
    gradient function.
    """
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _samples(x: Tensor) -> list:
    from mmdet.structures import DetDataSample

    size = tuple(x.shape[-2:])
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    return [DetDataSample(metainfo={**shapes, 'scale_factor': (1.0, 1.0)}) for _ in x]


def build_detector(cfg: Config) -> nn.Module:
    """The detector of an mmdet config with new random weights, whatever its ``init_cfg``; the random state is kept."""
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    with torch.random.fork_rng(devices=[]):
        return MODELS.build(model_settings(cfg)).eval()


def default_size(cfg: Config) -> Size:
    """Largest ``(height, width)`` in pixels to which the test pipeline resizes a landscape image.

    Without a fixed scale, as in micrographs that are read at their own size, it is the size of the middle picture by
    area, times the pipeline's ``scale_factor``.

    Raises:
        ValueError: there is no ``Resize`` with a scale, and the data set does not know the sizes of its pictures.
    """
    part, factor = evaluation_part(cfg), (1.0, 1.0)
    settings = datasets_in(cfg, part)[0].settings
    for step in settings.get('pipeline', ()):
        if is_type(step.type, 'Resize', registry=TRANSFORMS, scope='mmdet'):
            scale, given = step.get('scale'), step.get('scale_factor') or 1.0
            if isinstance(scale, (tuple, list)):
                width, height = scale
                return height, width
            factor = tuple(given) if isinstance(given, (tuple, list)) else (given, given)
    size = _middle_picture(settings)
    if size is None:
        raise ValueError(f'{part}_dataloader: its pipeline has no Resize with a scale; give the size.')
    return int(size[0] * factor[1] + 0.5), int(size[1] * factor[0] + 0.5)


def _middle_picture(settings: Mapping[str, Any]) -> Size | None:
    """``(height, width)`` of the middle picture by area of a data set; None if it does not know them."""
    from mmdet.registry import DATASETS

    init_default_scope('mmdet')
    dataset = DATASETS.build(settings)
    infos = [dataset.get_data_info(k) for k in range(len(dataset))]
    if not infos or any('height' not in info or 'width' not in info for info in infos):
        return None
    sizes = sorted(((info['height'], info['width']) for info in infos), key=lambda size: (size[0] * size[1], size))
    return sizes[len(sizes) // 2]


def padded(size: Size, detector: nn.Module) -> Size:
    """A size after the padding of the detector's preprocessor."""
    divisor = getattr(detector.data_preprocessor, 'pad_size_divisor', 1)
    return tuple(-(-side // divisor) * divisor for side in size)


def first_images(cfg: Config, detector: nn.Module, size: Size, count: int) -> Tensor:
    """Images of the test set after the detector's preprocessing, stretched to one size.

    Args:
        cfg: config with the test data.
        detector: its preprocessor normalises them.
        size: ``(height, width)``.
        count: number of images; a smaller test set starts again with its first image.

    Returns:
        ``(count, 3, height, width)`` on the detector's device.
    """
    from mmdet.registry import DATASETS

    init_default_scope('mmdet')
    dataset, images = DATASETS.build(cfg[f'{evaluation_part(cfg)}_dataloader'].dataset), []
    for k in range(count):
        batch = detector.data_preprocessor(pseudo_collate([dataset[k % len(dataset)]]), False)
        images.append(F.interpolate(batch['inputs'], size, mode='bilinear', align_corners=False))
    return torch.cat(images)
