import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from upvit_mm.arch.size import four_global_blocks
from upvit_mm.checkpoints import to_ours
from upvit_mm.models.backbones import vit
from upvit_mm.models.layers import WindowedAttention

# ---------------------------------------------------------------------- parity


@pytest.mark.parametrize('name', ['tiny', 'small', 'base'])
def test_features_and_class_token_equal_timm(name, timm_source, image, distance):
    source, backbone = timm_source(f'deit_{name}_patch16_224'), vit.UPDeiT(f'deit-{name}').eval()
    backbone.double().load_state_dict(to_ours(source.state))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        backbone.to(dtype)
        source.model.to(dtype)
        x = image(224, 224, batch=1).to(dtype)
        with torch.no_grad():
            tokens = source.model.forward_features(x)  # (1, 1+196, C)
            backbone.out_type = 'featmap'
            (feature_map,) = backbone(x)
            backbone.out_type = 'cls_token'
            (cls_token,) = backbone(x)
        assert distance(feature_map, tokens[:, 1:].transpose(1, 2).unflatten(2, (14, 14))) < tolerance
        assert distance(cls_token, tokens[:, 0]) < tolerance


def test_every_block_equals_timm(timm_source, build, image, distance):
    source, backbone = timm_source('deit_tiny_patch16_224'), build('deit', 'deit-tiny', out_indices=range(11))
    backbone.double().load_state_dict(to_ours(source.state))
    x = image(224, 224, batch=1).double()
    theirs = []
    for block in source.model.blocks:
        block.register_forward_hook(lambda module, inputs, out: theirs.append(out[:, 1:]))
    with torch.no_grad():
        source.features(x)
        outs = backbone(x)
    assert len(outs) == 11
    assert max(distance(a.flatten(2).transpose(1, 2), b) for a, b in zip(outs, theirs)) < 1e-10


# ---------------------------------------------------------------------- shapes


@pytest.mark.parametrize('window_size', [0, 2])
@pytest.mark.parametrize(('height', 'width'), [(64, 64), (16, 16), (17, 16), (80, 48), (101, 33), (50, 250)])
def test_any_size_gives_one_map_at_stride_16(build, image, height, width, window_size):
    with torch.no_grad():
        (out,) = build('deit', window_size=window_size)(image(height, width))
    assert out.shape == (2, 45, -(-height // 16), -(-width // 16))
    assert torch.isfinite(out).all()


def test_cls_token_has_no_grid(build, image):
    outs = build('deit', out_type='cls_token', out_indices=(1, -1))(image(80, 48))
    assert [tuple(o.shape) for o in outs] == [(2, 45), (2, 45)]


def test_out_indices_pick_blocks_and_only_the_last_is_normed(build, image):
    x = image(64, 64)
    with torch.no_grad():
        first, last = build('deit', out_indices=(4, 1))(x)
        (alone,) = build('deit')(x)
        backbone = build('deit')
        normed = []
        backbone.stages[0].norm.register_forward_hook(lambda module, inputs, out: normed.append(out))
        backbone(x)
    assert torch.equal(last, alone)
    assert torch.equal(last, normed[0][:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    assert first.shape == last.shape


def test_position_decides(build, image):
    """With all patches alike, differences on the map can only come from the position embeddings."""
    backbone, x = build('deit'), torch.ones(1, 3, 80, 48)
    with torch.no_grad():
        assert backbone(x)[0].std(dim=(2, 3)).min() > 0.1
        backbone.pos_embed.zero_()
        assert backbone(x)[0].std(dim=(2, 3)).max() < 1e-5


# --------------------------------------------------------- resized positions


def change_by_optimizer(backbone, build):
    backbone.pos_embed.grad = build('deit', seed=9).pos_embed.detach()
    torch.optim.AdamW([backbone.pos_embed], lr=0.5).step()


def change_by_loading(backbone, build):
    backbone.load_state_dict(build('deit', seed=9).state_dict())


def change_through_data(backbone, build):
    """As mmengine's EMAHook and mmdet's MeanTeacherHook do: torch's version counter does not see it."""
    backbone.pos_embed.data.copy_(build('deit', seed=9).pos_embed)


def change_in_place(backbone, build):
    backbone.pos_embed.copy_(build('deit', seed=9).pos_embed)


@pytest.mark.parametrize('change', [change_by_optimizer, change_by_loading, change_through_data, change_in_place])
@pytest.mark.parametrize('no_gradients', [torch.no_grad, torch.inference_mode])
def test_resized_positions_follow_the_weights(build, image, distance, change, no_gradients):
    """No call of ``train`` or ``eval`` in between: within a loop nobody makes one."""
    backbone, x = build('deit'), image(80, 48)
    with no_gradients():
        before = backbone(x)[0].clone()
    with torch.no_grad():
        change(backbone, build)
    with no_gradients():
        after, fresh = backbone(x)[0], copy.deepcopy(backbone)(x)[0]
    assert torch.equal(after, fresh)
    assert distance(after, before) > 0.05


def test_positions_are_resized_in_the_weights_precision(build, image, monkeypatch):
    backbone, x = build('deit').double(), image(80, 48).double()
    seen = []
    original = vit.resize_pos_embed
    monkeypatch.setattr(
        vit, 'resize_pos_embed', lambda *given, **named: seen.append(original(*given, **named)) or seen[-1]
    )
    with torch.no_grad():
        backbone(x)
        backbone.float()(x.float())
    double, single = seen
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    assert 1e-9 < (double - single).abs().max() < 1e-5


# --------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ('depth', 'blocks'), [(12, (2, 5, 8, 11)), (5, (0, 1, 2, 4)), (4, (0, 1, 2, 3)), (3, (0, 1, 2)), (1, (0,))]
)
def test_four_global_blocks(depth, blocks):
    assert four_global_blocks(depth) == blocks


def global_blocks(backbone) -> list[int]:
    return [j for j, b in enumerate(backbone.stages[0].blocks) if not isinstance(b.attn, WindowedAttention)]


def test_which_blocks_are_windowed(build):
    assert global_blocks(build('deit')) == [0, 1, 2, 3, 4]
    assert global_blocks(build('deit', window_size=2)) == [0, 1, 2, 4]
    assert global_blocks(build('deit', window_size=2, global_blocks=(-1, 1))) == [1, 4]
    assert global_blocks(build('deit', window_size=2, global_blocks=())) == []


def test_global_blocks_without_windows_are_ignored_with_a_warning(build):
    with pytest.warns(UserWarning, match=r'global_blocks = \(1,\) is ignored'):
        assert global_blocks(build('deit', global_blocks=(1,))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('family', ['deit', 'dinov2', 'dinov3'])
def test_window_larger_than_the_image_equals_global_attention(family, build, image):
    x = image(80, 48)
    with torch.no_grad():
        (expected,) = build(family)(x)
        (windowed,) = build(family, window_size=5, global_blocks=())(x)
        (narrow,) = build(family, window_size=3, global_blocks=())(x)
    assert torch.equal(windowed, expected)
    assert not torch.allclose(narrow, expected, atol=1e-2)


@pytest.mark.parametrize('family', ['deit', 'dinov2', 'dinov3'])
def test_weights_do_not_depend_on_windows(family, build):
    assert build(family).state_dict().keys() == build(family, window_size=2).state_dict().keys()


@pytest.mark.parametrize('family', ['dinov2', 'dinov3'])
def test_class_token_and_registers_lie_in_every_window(family, build, image):
    """Without them, a patch's output depends on its own window only; what they hold reaches all."""
    backbone = build(family, window_size=2, global_blocks=())
    block = backbone.stages[0].blocks[0].double()
    prefix, grid = backbone.num_prefix_tokens, (4, 6)
    tokens = torch.randn(1, prefix + 24, 45, dtype=torch.float64)
    with torch.no_grad():
        before = block(tokens, grid)
        for place, moved in ((prefix, {(0, 0), (0, 1), (1, 0), (1, 1)}), (prefix - 1, {(0, 0), (3, 5), (1, 4)})):
            changed = tokens.clone()
            changed[:, place] = -tokens[:, place]
            difference = (block(changed, grid) - before).abs().amax(dim=(0, 2))
            found = {divmod(n, 6) for n in difference[prefix:].nonzero().flatten().tolist()}
            assert moved <= found
            assert len(found) == (4 if place == prefix else 24)
            assert (difference[:prefix] > 0).all()


def test_windows_cost_less_memory_in_training(build, image):
    x = image(320, 320, batch=1)

    def largest_saved(**settings):
        backbone, sizes = build('deit', **settings), []

        def keep(saved):
            if saved is not x:
                sizes.append(saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved), sdpa_kernel(SDPBackend.MATH):
            backbone(x)
        return max(sizes)

    assert largest_saved() >= 4 * 401**2  # four heads of (1 + 20*20)^2 attention weights
    assert largest_saved(window_size=4, global_blocks=()) < 4 * 401**2 / 5


# -------------------------------------------------------------------- freezing


@pytest.mark.parametrize(
    ('frozen_stages', 'prefixes'),
    [
        (-1, ()),
        (0, ('cls_token', 'pos_embed', 'stages.0.patch_embed.')),
        (2, ('cls_token', 'pos_embed', 'stages.0.patch_embed.', 'stages.0.blocks.0.', 'stages.0.blocks.1.')),
        (5, ('cls_token', 'pos_embed', 'stages.')),
    ],
)
def test_frozen_stages(build, frozen_stages, prefixes):
    backbone = build('deit', frozen_stages=frozen_stages, drop_path_rate=0.2).train()
    frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == [n for n, _ in backbone.named_parameters() if prefixes and n.startswith(prefixes)]
    blocks = [block.training for block in backbone.stages[0].blocks]
    assert blocks == [j >= frozen_stages for j in range(5)]


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            dict(arch='deit-huge'),
            r"arch = 'deit-huge': unknown name. Known: deit-tiny, deit-small, deit-base, dinov2-tiny",
        ),
        (dict(arch='pvtv2-b1'), r"arch family = 'pvtv2': .* use type='upvit_mm.UPPVTv2'"),
        (dict(out_type='raw'), r"out_type = 'raw': must be one of featmap, cls_token"),
        (dict(out_indices=(5,)), r'out_indices = \(5,\): UPDeiT\(arch=tiny-deit\) has indices 0 to 4'),
        (dict(window_size=2, global_blocks=(7,)), r'global_blocks = \(7,\): .* 0 to 4'),
        (dict(window_size=-1), r'window_size = -1: must be 0 \(global attention\) or more'),
        (dict(frozen_stages=6), r'frozen_stages = 6: must lie in -1 to 5'),
        (dict(drop_path_rate=-0.1), r'drop_path_rate = -0.1: must lie in \[0, 1\)'),
    ],
)
def test_wrong_setting_is_named(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build('deit', **settings)


def test_image_smaller_than_the_patch(build, image):
    with pytest.raises(ValueError, match='image of 15x64 pixels: UPDeiT needs at least 16 pixels a side'):
        build('deit')(image(15, 64))
