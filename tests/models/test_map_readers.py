"""Which tensors read a detector's maps, and that they are cut as the backbone is: exact in float64, for many kinds."""

from __future__ import annotations

import pytest
import torch
from fixtures.kept import first_of_every_head

from upvit_mm.arch import ArchSpec
from upvit_mm.models.map_readers import TOLERANCE, MapReaders, find_map_readers, readers_between
from upvit_mm.pruning import make_plan, prunable_dims
from upvit_mm.pruning.gates import gates
from upvit_mm.pruning.table import Slot
from upvit_mm.workflow.detector_file import narrowed, with_own_backbone
from upvit_mm.workflow.whole_detector import build_detector, map_outputs

FPN = {i: [f'neck.lateral_convs.{i}.conv.weight'] for i in range(4)}
FROM_STRIDE_8 = {0: [], 1: FPN[0], 2: FPN[1], 3: FPN[2]}
CHANNEL_MAPPER = {0: [], **{i: [f'neck.convs.{i - 1}.conv.weight'] for i in (1, 2, 3)}}
CHANNEL_MAPPER[3] = [*CHANNEL_MAPPER[3], 'neck.extra_convs.0.conv.weight']
PIXEL_DECODER = 'panoptic_head.pixel_decoder'
READERS = {  # names by stage; None: the width is fixed
    'retinanet': FROM_STRIDE_8 | {3: [*FPN[2], 'neck.fpn_convs.3.conv.weight']},
    'faster-rcnn': FPN,
    'mask-rcnn': FPN,
    'cascade-rcnn': FPN,
    'fcos': FROM_STRIDE_8,
    'atss': FROM_STRIDE_8,
    'rtmdet': {0: [], 1: None, 2: None, 3: None},
    'yolof': {0: [], 1: [], 2: [], 3: ['neck.lateral_conv.weight']},
    'deformable-detr': CHANNEL_MAPPER,
    'dino': CHANNEL_MAPPER,
    'mask2former': {0: [f'{PIXEL_DECODER}.lateral_convs.0.conv.weight']}
    | {i: [f'{PIXEL_DECODER}.input_convs.{3 - i}.conv.weight'] for i in (1, 2, 3)},
}

FIRST_LAYERS = {  # by the first level; deconvolutions read their first axis
    0: {'0.0': 0, '1.0': 0, '2.0': 1, '3.1': 1},
    2: {'0.0': 1, '1.1': 1, '2.2': 1, '3.3': 1},
}


@pytest.fixture
def subject(randomise, image):
    """``subject(cfg)``: a random detector of a config in float64, its own config, and its readers."""

    def make(cfg):
        own = with_own_backbone(cfg)
        detector = randomise(build_detector(own)).double()
        found = find_map_readers(
            detector, lambda arch: build_detector(narrowed(own, arch)), map_outputs, image(128, 128, batch=1)
        )
        return detector, own, found

    return make


@pytest.mark.parametrize('kind', READERS)
def test_readers_of_many_detectors(kind, detector_of, subject):
    found = subject(detector_of(kind))[2]
    names = {int(name.split('.')[1]): [slot.tensor for slot in slots] for name, slots in found.slots.items()}
    assert names == {i: tensors for i, tensors in READERS[kind].items() if tensors is not None}
    assert {slot.axis for slots in found.slots.values() for slot in slots} <= {1}
    fixed = {f'stages.{i}.embed' for i, tensors in READERS[kind].items() if tensors is None}
    assert set(found.fixed) == fixed
    for reason in found.fixed.values():
        assert 'after a map of half the width' in reason


@pytest.mark.parametrize('kind', ['faster-rcnn', 'dino', 'mask2former'])
def test_sliced_is_gated_with_all_embeddings_cut(kind, detector_of, subject, image, distance):
    detector, own, readers = subject(detector_of(kind))
    arch = detector.backbone.arch
    keep = {f'stages.{i}.embed': torch.arange(0, width, 3) for i, width in enumerate(arch.embed_dims)}
    _same(detector, own, readers, keep, image, distance)


@pytest.mark.parametrize('level', [0, 2])
def test_a_plain_vit_with_a_simple_feature_pyramid(level, detector_of, tiny_arch, subject, image, distance):
    backbone = dict(type='upvit_mm.UPDeiT', arch=tiny_arch('deit'), window_size=3)
    cfg = detector_of('faster-rcnn', **backbone)
    cfg.model.neck = dict(
        type='upvit_mm.SimpleFeaturePyramid', in_channels=45, out_channels=16, num_outs=4, start_level=level
    )
    detector, own, readers = subject(cfg)
    assert not readers.fixed
    axes = {slot.tensor: slot.axis for slot in readers.slots['stages.0.embed']}
    assert axes == {f'neck.levels.{i}.weight': axis for i, axis in FIRST_LAYERS[level].items()}
    _same(detector, own, readers, {'stages.0.embed': torch.arange(1, 45, 2)}, image, distance)


@pytest.mark.parametrize(
    ('family', 'kind', 'patch_size', 'level'), [('dinov2', 'mask-rcnn', 14, 0), ('dinov3', 'retinanet', 16, 1)]
)
def test_dino_detectors_with_all_dims_cut(
    family, kind, patch_size, level, detector_of, tiny_arch, subject, image, distance
):
    """Registers, rotary pairs, SwiGLU, windows, patches of 14 px: half of every dim is gone."""
    arch = tiny_arch(family, patch_size=patch_size, img_size=4 * patch_size)
    cfg = detector_of(kind, type='upvit_mm.UPViT', arch=arch, window_size=3)
    cfg.model.neck = dict(
        type='upvit_mm.SimpleFeaturePyramid', in_channels=45, out_channels=16, num_outs=5, start_level=level
    )
    detector, own, readers = subject(cfg)
    assert not readers.fixed
    dims = prunable_dims(detector.backbone.arch)
    keep = {name: torch.tensor(first_of_every_head(dim)) for name, dim in dims.items()}
    assert len(keep) == 1 + 3 * detector.backbone.arch.depths[0]
    _same(detector, own, readers, keep, image, distance)


def test_raw_tokens_are_read_too(detector_of, tiny_arch, subject):
    """Maps of blocks before the last have no norm, so a gate does not reach them, but slicing is right."""
    cfg = detector_of('faster-rcnn', type='upvit_mm.UPDeiT', arch=tiny_arch('deit'), out_indices=(0, 1, 3, 4))
    found = subject(cfg)[2]
    assert [slot.tensor for slot in found.slots['stages.0.embed']] == [FPN[i][0] for i in range(4)]


def test_a_norm_over_channels_fixes_its_map(detector_of, subject):
    """Shapes alone do not tell that its mean and deviation would be taken over fewer channels."""
    cfg = detector_of('yolof')
    cfg.model.neck.norm_cfg = dict(type='GN', num_groups=1)
    cfg.model.neck.type = 'NormedFirst'
    from mmdet.models.necks import DilatedEncoder
    from mmdet.registry import MODELS

    class NormedFirst(DilatedEncoder):
        def __init__(self, in_channels, norm_cfg, **settings):
            super().__init__(in_channels, **settings)
            self.first = torch.nn.GroupNorm(1, in_channels)

        def forward(self, feature):
            return super().forward((self.first(feature[-1]),))

    MODELS.register_module(module=NormedFirst, force=True)
    try:
        found = subject(cfg)[2]
    finally:
        MODELS.module_dict.pop('NormedFirst')
    assert list(found.fixed) == ['stages.3.embed']
    assert 'without half of its channels the detector gives other outputs' in found.fixed['stages.3.embed']


def test_changes_that_do_not_follow_the_map():
    wide = {'neck.a': torch.zeros(4, 8), 'neck.b': torch.zeros(16), 'backbone.c': torch.zeros(8)}
    assert readers_between(wide, wide | {'neck.a': torch.zeros(4, 5)}, 8, 5) == (Slot('neck.a', 1),)
    for changed in ({'neck.b': torch.zeros(10)}, {'neck.a': torch.zeros(5, 5)}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            readers_between(wide, wide | changed, 8, 5)
    with pytest.raises(ValueError, match=r'neck\.b has shape'):
        readers_between(wide, {'neck.a': wide['neck.a']}, 8, 5)


def _same(detector, own, readers: MapReaders, keep: dict, image, distance) -> None:
    """The sliced detector computes what the gated one does."""
    plan = make_plan(detector.backbone.arch, keep)
    pruned = build_detector(narrowed(own, ArchSpec.from_dict(plan.target_arch.to_dict()))).double()
    pruned.load_state_dict(readers.slice(detector.state_dict(), plan))
    dims = prunable_dims(detector.backbone.arch)
    gate = {name: torch.zeros(dims[name].size).double().index_fill(0, kept, 1) for name, kept in keep.items()}
    x = image(128, 160).double()
    with torch.no_grad(), gates(detector.backbone, gate):
        theirs = torch.utils._pytree.tree_leaves(map_outputs(detector, x))
    with torch.no_grad():
        ours = torch.utils._pytree.tree_leaves(map_outputs(pruned, x))
    assert len(ours) == len(theirs) > 1
    assert max(distance(a, b) for a, b in zip(ours, theirs)) < TOLERANCE
