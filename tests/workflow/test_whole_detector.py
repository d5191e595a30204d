"""A detector as a network from images to detections."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upvit_mm.compare.contestants import Contestant, with_backbone
from upvit_mm.workflow.whole_detector import (
    WholeDetector,
    build_detector,
    default_size,
    first_images,
    macs_after_backbone,
    padded,
)


@pytest.mark.parametrize('kind', ['retinanet', 'mask-rcnn'])
def test_it_detects_what_mmdet_detects(kind, detector_config, archs):
    from mmdet.registry import DATASETS

    cfg = with_backbone(detector_config('pvtv2', kind), Contestant.parse(f'a={archs("pvtv2")[0]}'))
    torch.manual_seed(0)
    detector = build_detector(cfg)
    detector.init_weights()
    images = first_images(cfg, detector, (64, 64), 3)
    assert images.shape == (3, 3, 64, 64)
    assert torch.equal(images[0], images[2])  # two images in the set
    with torch.no_grad():
        ours = WholeDetector(detector)(images[:1])[0].pred_instances
        sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
        data = {'inputs': [sample['inputs']], 'data_samples': [sample['data_samples']]}
        theirs = detector.test_step(data)[0].pred_instances
    assert len(ours) > 10
    assert torch.equal(ours.labels, theirs.labels)
    torch.testing.assert_close(ours.scores, theirs.scores)
    torch.testing.assert_close(2 * ours.bboxes, theirs.bboxes)  # mmdet's are for the file's 128 px


def test_sizes(detector_config, archs):
    cfg = detector_config('pvtv2')
    assert default_size(cfg) == (64, 64)
    cfg.test_dataloader.dataset.pipeline[1].scale = (1333, 800)
    assert default_size(cfg) == (800, 1333)
    detector = build_detector(with_backbone(cfg, Contestant.parse(f'a={archs("pvtv2")[0]}')))
    assert padded((800, 1333), detector) == (800, 1344)
    cfg.test_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=cfg.test_dataloader.dataset)
    assert default_size(cfg) == (800, 1333)
    cfg.test_dataloader.dataset.dataset.pipeline[1].scale = None
    cfg.test_dataloader.dataset.dataset.pipeline[1].scale_factor = (2.0, 0.5)
    assert default_size(cfg) == (64, 256)  # width by 2, height by 0.5


def test_the_size_of_pictures_that_are_read_as_they_are(detector_config, monkeypatch):
    """The middle one by area; a data set that does not know sizes cannot say."""
    from mmdet.datasets import CocoDataset

    cfg = detector_config('pvtv2')
    cfg.test_dataloader.dataset.pipeline.pop(1)
    assert default_size(cfg) == (128, 128)
    infos = [{'height': h, 'width': w} for h, w in ((100, 300), (64, 64), (90, 200), (500, 500), (20, 30))]
    monkeypatch.setattr(CocoDataset, '__len__', lambda self: len(infos))
    monkeypatch.setattr(CocoDataset, 'get_data_info', lambda self, k: infos[k])
    assert default_size(cfg) == (90, 200)
    del infos[0]['height']
    with pytest.raises(ValueError, match='no Resize with a scale; give the size'):
        default_size(cfg)


def test_macs_of_heads_of_two_stages(detector_config):
    """More at a larger size; the backbone is not counted, and it is back afterwards."""
    detector = build_detector(detector_config('pvtv2', 'mask-rcnn'))
    found = [macs_after_backbone(detector, size) for size in ((64, 64), (128, 128))]
    assert 0 < found[0] < found[1]
    assert type(detector.backbone).__name__ == 'UPPVTv2'


def test_macs_of_a_retinanet_by_hand(detector_config):
    """One picture of 64 x 64: laterals, outputs, and the towers of both heads at every level."""
    detector = build_detector(detector_config('pvtv2'))
    counted = 0

    def count(module: nn.Conv2d, given: tuple, result: Tensor) -> None:
        nonlocal counted
        counted += module.weight.numel() * result.shape[-2] * result.shape[-1]

    rest = [module for name, module in detector.named_modules() if not name.startswith('backbone')]
    for module in rest:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    assert macs_after_backbone(detector, (64, 64)) == counted > 0


def test_macs_of_a_deformable_detr_by_hand(detector_of):
    """Linear layers, convolutions, and the self-attention of the queries; its parameters are trained as before."""
    detector, counted = build_detector(detector_of('deformable-detr')), 0
    trained = [parameter.requires_grad for parameter in detector.parameters()]

    def count(module: nn.Module, given: tuple, result: Tensor) -> None:
        nonlocal counted
        outputs = result.shape[1] if isinstance(module, nn.Conv2d) else result.shape[-1]
        counted += module.weight.numel() * (result.numel() // outputs)

    def count_attention(module: nn.MultiheadAttention, given: tuple, kwargs: dict, result: tuple) -> None:
        nonlocal counted
        n, width = kwargs['query'].shape[0], module.embed_dim  # of one image
        counted += 4 * n * width**2 + 2 * n**2 * width

    for name, module in detector.named_modules():
        if name.startswith('backbone'):
            continue
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_hook(count_attention, with_kwargs=True)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    assert macs_after_backbone(detector, (64, 64)) == counted > 10**8
    assert [parameter.requires_grad for parameter in detector.parameters()] == trained


def test_a_detector_that_cannot_be_counted(detector_config, monkeypatch, caplog):
    detector = build_detector(detector_config('pvtv2'))
    monkeypatch.setattr(type(detector), '_forward', None)
    assert macs_after_backbone(detector, (64, 64)) is None
    assert 'RetinaNet: its multiply-accumulates cannot be counted' in caplog.text
