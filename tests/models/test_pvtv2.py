import pytest
import torch

from upvit_mm.checkpoints import to_ours


def against(source, backbone, size, dtype, image, distance) -> float:
    """Largest distance over the stages, with the same weights in both."""
    backbone.to(dtype).load_state_dict(to_ours(source.state))
    source.model.to(dtype)
    x = image(*size, batch=1).to(dtype)
    with torch.no_grad():
        ours, theirs = backbone(x), source.features(x)
    assert len(ours) == len(theirs) == 4
    return max(distance(a, b) for a, b in zip(ours, theirs))


# ---------------------------------------------------------------------- parity


@pytest.mark.parametrize('name', ['b0', 'b1', 'b2'])
def test_every_stage_equals_timm(name, timm_source, build, image, distance):
    source, backbone = timm_source(f'pvt_v2_{name}'), build('pvtv2', f'pvtv2-{name}')
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        for size in ((128, 128), (250, 333)):
            assert against(source, backbone, size, dtype, image, distance) < tolerance, (dtype, size)


def test_every_stage_is_near_mmdet(mmdet_source, build, image, distance):
    """mmdet has eps 1e-6 in every norm, the authors (and we) 1e-5 in patch embedding and spatial reduction."""
    source = mmdet_source(32, [2, 2, 2, 2], same_eps=False)
    assert 1e-7 < against(source, build('pvtv2', 'pvtv2-b0'), (224, 224), torch.float64, image, distance) < 1e-3


def test_every_stage_equals_mmdet_with_our_eps(mmdet_source, build, image, distance):
    source = mmdet_source(32, [2, 2, 2, 2], same_eps=True)
    assert against(source, build('pvtv2', 'pvtv2-b0'), (224, 224), torch.float64, image, distance) < 1e-10


# ---------------------------------------------------------------------- shapes


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (64, 96), (33, 65), (97, 61), (127, 32), (101, 250)])
def test_any_size_gives_rounded_up_grids_at_strides_4_to_32(build, image, height, width):
    with torch.no_grad():
        outs = build('pvtv2')(image(height, width))
    grids = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    assert [tuple(o.shape) for o in outs] == [(2, c, *g) for c, g in zip((16, 24, 35, 40), grids)]
    assert all(torch.isfinite(o).all() for o in outs)


@pytest.mark.parametrize(('given', 'stages'), [((1, 3), (1, 3)), ((-1,), (3,)), ((2, 0), (0, 2)), ((-4, 1), (0, 1))])
def test_out_indices_pick_stages(build, image, given, stages):
    x = image(64, 64)
    with torch.no_grad():
        every, some = build('pvtv2')(x), build('pvtv2', out_indices=given)(x)
    assert len(some) == len(stages)
    assert all(torch.equal(a, every[i]) for a, i in zip(some, stages))


# -------------------------------------------------------------------- freezing


@pytest.mark.parametrize(
    ('frozen_stages', 'prefixes'),
    [
        (-1, ()),
        (0, ('stages.0.patch_embed.',)),
        (1, ('stages.0.',)),
        (3, ('stages.0.', 'stages.1.', 'stages.2.')),
        (4, ('stages.',)),
    ],
)
def test_frozen_stages(build, frozen_stages, prefixes):
    backbone = build('pvtv2', frozen_stages=frozen_stages, drop_path_rate=0.2).train()
    frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == [n for n, _ in backbone.named_parameters() if prefixes and n.startswith(prefixes)]
    for name, module in backbone.named_modules():
        if not list(module.children()):
            assert module.training != bool(prefixes and name.startswith(prefixes)), name


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(arch='pvtv2-b9'), r"arch = 'pvtv2-b9': unknown name. Known: deit-tiny, .*pvtv2-b0, .*pvtv2-b5"),
        (dict(arch='deit-tiny'), r"arch family = 'deit': .* use type='upvit_mm.UPDeiT'"),
        (dict(out_indices=(3, -1)), r'out_indices = \(3, -1\): .* at least one must be given, each once'),
        (dict(out_indices=(0, 4)), r'out_indices = \(0, 4\): UPPVTv2\(arch=tiny-pvtv2\) has indices 0 to 3'),
        (dict(out_indices=(-5,)), r'out_indices = \(-5,\): .* \(or -1 to -4\)'),
        (dict(out_indices=()), r'out_indices = \(\): .*at least one must be given'),
        (dict(frozen_stages=5), r'frozen_stages = 5: must lie in -1 to 4'),
        (dict(frozen_stages=-2), r'frozen_stages = -2: must lie in -1 to 4'),
        (dict(drop_path_rate=1.0), r'drop_path_rate = 1.0: must lie in \[0, 1\)'),
    ],
)
def test_wrong_setting_is_named(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build('pvtv2', **settings)


@pytest.mark.parametrize(('height', 'width'), [(31, 64), (64, 16), (1, 1)])
def test_image_smaller_than_the_stride(build, image, height, width):
    with pytest.raises(ValueError, match=rf'image of {height}x{width} pixels: UPPVTv2 needs at least 32 pixels a side'):
        build('pvtv2')(image(height, width))


def test_image_smaller_than_one_cell_of_the_spatial_reduction(build, image, tiny_arch):
    backbone = build('pvtv2', tiny_arch('pvtv2', sr_ratios=[8, 8, 2, 1]))
    with pytest.raises(ValueError, match='image of 64x63 pixels: UPPVTv2 needs at least 64 pixels a side'):
        backbone(image(64, 63))
    assert backbone(image(64, 64))[3].shape == (2, 40, 2, 2)


def test_a_single_index_may_be_a_number(build, image):
    """As mmpretrain's configs write it."""
    (last,) = build('pvtv2', out_indices=3)(image(64, 64))
    assert last.shape[-2:] == (2, 2)
