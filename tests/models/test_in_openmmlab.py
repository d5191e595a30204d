"""The backbones and the neck at work in mmdet and mmpretrain."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData

BUILD_ALL = """
from {package}.registry import MODELS

for scope in ('', 'mmdet', 'mmpretrain'):
    if scope:
        from mmengine.registry import init_default_scope
        init_default_scope(scope)
    built = [
        MODELS.build(dict(type='upvit_mm.UPPVTv2', arch='pvtv2-b0')),
        MODELS.build(dict(type='upvit_mm.UPDeiT', arch='deit-tiny')),
        MODELS.build(dict(type='upvit_mm.SimpleFeaturePyramid', in_channels=192)),
    ]
    print(*(f'{{type(m).__module__}}.{{type(m).__name__}}' for m in built))
"""


@pytest.mark.parametrize('package', ['mmdet', 'mmpretrain'])
def test_types_resolve_without_custom_imports(package, run_python):
    lines = run_python(BUILD_ALL.format(package=package)).splitlines()
    models = 'upvit_mm.models'
    assert (
        lines
        == [
            f'{models}.backbones.pvtv2.UPPVTv2 {models}.backbones.vit.UPDeiT '
            f'{models}.necks.simple_feature_pyramid.SimpleFeaturePyramid'
        ]
        * 3
    )


def test_roi_align_reads_our_maps_right(family, detector, tiny_arch, image, distance):
    """mmcv's operator against torchvision's, which heeds the layout; it once made Mask R-CNN learn from noise."""
    from mmcv.ops import RoIAlign
    from torchvision.ops import roi_align

    rois = torch.tensor([[0.0, 8.0, 8.0, 70.0, 60.0], [1.0, 0.0, 20.0, 40.0, 90.0]])
    with torch.no_grad():
        model = detector(family, tiny_arch(family))
        x = image(96, 128)
        maps = [*model.backbone(x), *model.extract_feat(x)]
        for level in maps:
            scale = level.shape[-1] / 128
            ours = RoIAlign(7, spatial_scale=scale, sampling_ratio=2)(level, rois)
            assert distance(ours, roi_align(level, rois, 7, scale, 2, aligned=True)) < 1e-5


def detection_batch(image):
    from mmdet.structures import DetDataSample

    size = (96, 128)
    sample = DetDataSample(
        metainfo=dict(img_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]), labels=torch.tensor([0, 2])
    )
    return image(*size, batch=1), [sample]


def test_detector_trains_and_predicts(family, detector, tiny_arch, image):
    torch.manual_seed(0)
    model = detector(family, tiny_arch(family)).train()
    inputs, samples = detection_batch(image)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        parsed, _ = model.parse_losses(model(inputs, samples, mode='loss'))
        optimizer.zero_grad()
        parsed.backward()
        assert all(p.grad is not None for p in model.backbone.parameters())
        optimizer.step()
        losses.append(parsed.item())
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        (result,) = model.eval()(inputs, samples, mode='predict')
    assert result.pred_instances.bboxes.shape == (len(result.pred_instances.scores), 4)


def test_classifier_trains(family, classifier, tiny_arch, image):
    from mmpretrain.structures import DataSample

    torch.manual_seed(0)
    model = classifier(family, tiny_arch(family)).train()
    inputs, samples = image(64, 64, batch=4), [DataSample().set_gt_label(k) for k in range(4)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(inputs, samples, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.95, abs=0.5)  # log 7
    assert losses[-1] < 0.5 * losses[0]


def test_layer_wise_rates_and_weight_decay(family, classifier, tiny_arch):
    """mmpretrain's constructor: rates fall by 0.5 a block towards the image; norms, biases, tokens do not decay."""
    model = classifier(family, tiny_arch(family))
    blocks = sum(model.backbone.arch.depths)
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            constructor='LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(
                layer_decay_rate=0.5,
                norm_decay_mult=0.0,
                bias_decay_mult=0.0,
                custom_keys={'.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)},
            ),
        ),
    )
    groups = {g['param_name']: g for g in wrapper.optimizer.param_groups}
    assert groups.keys() == dict(model.named_parameters()).keys()
    decaying = {n for n, g in groups.items() if g['weight_decay'] == 0.05}
    matrices = {n for n, p in model.named_parameters() if p.ndim in (2, 4)}
    assert decaying == matrices
    assert {g['weight_decay'] for n, g in groups.items() if n not in matrices} == {0.0}
    assert groups['head.fc.weight']['lr'] == 1
    assert groups['backbone.stages.0.patch_embed.proj.weight']['lr'] == 0.5 ** (blocks + 1)
    last = len(model.backbone.stages) - 1
    assert groups[f'backbone.stages.{last}.norm.weight']['lr'] == 0.5
    assert groups['backbone.stages.0.blocks.0.mlp.fc1.bias']['lr'] == 0.5**blocks
