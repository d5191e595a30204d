import logging

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.pvt_v2 import checkpoint_filter_fn

from upvit_mm.checkpoints import LAYOUTS, check_state, detect_layout, from_ours, to_ours, to_ours_in_place

LAYOUT = {layout.name: layout for layout in LAYOUTS}


# ----------------------------------------------------------------- conversion


def test_layout_is_recognised(source):
    assert detect_layout(source.state).name == source.layout
    assert detect_layout(source.state).family == source.family


def test_ours_is_recognised_and_kept(family, build, identical):
    state = build(family).state_dict()
    assert detect_layout(state) is None
    assert identical(to_ours(state), state)


def test_converted_state_covers_our_backbone_exactly(source, build, stock_arch):
    ours = to_ours(source.state)
    expected = build(source.family, stock_arch(source.family)).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}
    assert all(v.dtype == torch.float64 for k, v in ours.items() if not k.endswith('rotary.frequencies'))


def test_there_and_back_is_bit_identical(source, build, stock_arch, identical):
    layout = LAYOUT[source.layout]
    state = {k: torch.ones_like(v) if 'gamma' in k else v for k, v in source.state.items()}  # LayerScale is folded
    assert identical(from_ours(to_ours(state), layout), state)
    ours = build(source.family, stock_arch(source.family), seed=3).state_dict()
    assert identical(to_ours(from_ours(ours, layout)), ours)


def test_features_are_equal_after_conversion(source, build, stock_arch, image, distance):
    backbone = build(source.family, stock_arch(source.family)).double()
    backbone.load_state_dict(to_ours(source.state))
    x = image(64, 64).double()
    with torch.no_grad():
        outs = backbone(x)
    reference = source.features(x)
    assert len(outs) == len(reference)
    assert max(distance(a, b) for a, b in zip(outs, reference)) < 1e-10


def test_official_names_are_those_that_timm_reads(tiny_source, identical):
    """The authors' PVTv2 is not installed; timm's own reader of their files vouches for the names."""
    timm, official = tiny_source('timm-pvtv2'), tiny_source('official-pvtv2')
    assert 'block1.0.mlp.dwconv.dwconv.weight' in official.state
    assert identical(checkpoint_filter_fn(official.state, None), timm.state)
    written = from_ours(to_ours(timm.state), LAYOUT['official PVTv2'])
    assert identical(checkpoint_filter_fn(written, None), timm.state)


def test_distillation_token_is_dropped_with_a_notice(timm_source, caplog):
    distilled = timm_source(
        VisionTransformerDistilled(img_size=64, embed_dim=48, depth=3, num_heads=3, num_classes=7)
    ).state
    with caplog.at_level(logging.WARNING, 'upvit_mm'):
        ours = to_ours(distilled)
    assert 'dropped dist_token: the distillation token has no place' in caplog.text
    assert not any('dist' in k for k in ours)
    assert ours['pos_embed'].shape == (1, 1 + 16, 48)
    # the class token keeps its position and so do the patches; the token's, the second, goes
    assert torch.equal(ours['pos_embed'][:, 0], distilled['pos_embed'][:, 0])
    assert torch.equal(ours['pos_embed'][:, 1:], distilled['pos_embed'][:, 2:])


def test_in_place_conversion_touches_only_what_is_below_the_prefix(tiny_source, identical):
    source = tiny_source('mmdet-pvtv2')
    state = {f'backbone.{k}': v for k, v in source.state.items()} | {'neck.weight': torch.ones(2)}
    to_ours_in_place(state, 'backbone.')
    expected = {f'backbone.{k}': v for k, v in to_ours(source.state).items()} | {'neck.weight': torch.ones(2)}
    assert identical(state, expected)


def test_in_place_conversion_leaves_the_unknown_alone():
    state = {'backbone.conv1.weight': torch.ones(2)}
    to_ours_in_place(state, 'backbone.')
    assert list(state) == ['backbone.conv1.weight']


# --------------------------------------------------------------------- errors


def test_unknown_layout_lists_the_known_ones_and_the_first_keys():
    keys = [f'layer{i}.conv1.weight' for i in range(7)]
    with pytest.raises(ValueError, match=r'layer0.conv1.weight, .*layer4.conv1.weight, \.\.\. \(7 in all\)') as info:
        detect_layout(keys)
    assert all(name in str(info.value) for name in ['ours', *LAYOUT])


def test_key_without_a_place_is_named(tiny_source):
    state = tiny_source('timm-deit').state | {'blocks.0.attn.q_norm.weight': torch.ones(16)}
    with pytest.raises(ValueError, match=r'1 tensor\(s\) have no place in a deit backbone .*: blocks.0.attn.q_norm'):
        to_ours(state)


def test_fused_tensor_must_divide_by_its_parts(tiny_source):
    state = tiny_source('timm-deit').state | {'blocks.1.attn.qkv.bias': torch.ones(145)}
    with pytest.raises(ValueError, match=r'blocks.1.attn.qkv.bias has 145 rows, which is no multiple of 3'):
        to_ours(state)


def test_free_widths_do_not_fit_a_fused_layout(build):
    with pytest.raises(ValueError, match=r'blocks.0.attn.qkv.weight: .*fuses tensors of one width.* \[24, 24, 12\]'):
        from_ours(build('deit').state_dict(), LAYOUT['timm / official DeiT'])


def test_foreign_tensor_has_no_way_back(build, stock_arch):
    state = build('deit', stock_arch('deit')).state_dict() | {'stages.0.blocks.0.gate': torch.ones(3)}
    with pytest.raises(ValueError, match=r"'stages.0.blocks.0.gate' has no place in the timm / official DeiT layout"):
        from_ours(state, LAYOUT['timm / official DeiT'])


def test_check_state_gives_the_first_five_and_the_count():
    expected = {f'a{i}': torch.ones(2) for i in range(6)}
    check_state(expected, expected, 'net')
    state = {f'a{i}': torch.ones(3) for i in range(3)} | {f'b{i}': torch.ones(2) for i in range(2)}
    with pytest.raises(ValueError, match=r'net: 8 tensors are missing, extra or .* \(the model has 6\): ') as info:
        check_state(state, expected, 'net')
    assert (
        'a0 has shape (3,), the model (2,); a1 has shape (3,), the model (2,); a2 has shape (3,), the model (2,); '
        'a3 is missing; a4 is missing; ...'
    ) in str(info.value)


# -------------------------------------------------- images of another size


def deit(build, stock_arch, **changes):
    return build('deit', stock_arch('deit', **changes)).state_dict()


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize(
    ('trained', 'remedy'),
    [
        (dict(img_size=96), r'It was trained at 96 px \(6x6 patches of 16 px\): set img_size=96 in the arch\.'),
        (
            dict(img_size=64, patch_size=8),
            r'64 px \(8x8 patches of 8 px\): set patch_size=8 and img_size=64 in the arch\.',
        ),
        (
            dict(img_size=32, patch_size=8),
            r'32 px \(4x4 patches of 8 px\): set patch_size=8 and img_size=32 in the arch\.',
        ),
    ],
)
def test_other_sizes_of_images_and_patches_are_named(trained, remedy, prefix, build, stock_arch):
    given, expected = deit(build, stock_arch, **trained), deit(build, stock_arch)
    given, expected = ({f'{prefix}{k}': v for k, v in state.items()} for state in (given, expected))
    with pytest.raises(ValueError, match=remedy):
        check_state(given, expected, 'net')
    build('deit', stock_arch('deit', **trained)).load_state_dict({k.removeprefix(prefix): v for k, v in given.items()})


def test_positions_that_are_no_square(build, stock_arch):
    state = deit(build, stock_arch)
    for count in (16, 1 + 4 * 6):  # without a class token's, or of images of two sides
        given = state | {'pos_embed': torch.ones(1, count, 48)}
        with pytest.raises(ValueError, match=rf'Its {count} positions are not a class token and a square of patches'):
            check_state(given, state, 'net')


def test_size_of_images_is_named_where_all_else_fits(build, stock_arch):
    expected, larger = deit(build, stock_arch), dict(img_size=96)
    for changes in (dict(mlp_hidden_dims=96), dict(in_channels=1)):
        with pytest.raises(ValueError, match=r'Use the arch\.json that was written beside the checkpoint'):
            check_state(deit(build, stock_arch, **larger, **changes), expected, 'net')


def test_check_state_asks_for_the_prefix_when_there_is_nothing():
    with pytest.raises(ValueError, match=r'\(the model has 1\): a is missing\. .*is its prefix right\?'):
        check_state({}, {'a': torch.ones(2)}, 'net')
