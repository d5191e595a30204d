"""Weights of one plain ViT in another: the difference is named, and the setting that removes it."""

import pytest
import torch

from upvit_mm.checkpoints import check_state
from upvit_mm.checkpoints.variants import named_remedy

V2 = dict(embed_dims=48, depths=2, num_heads=3, mlp_hidden_dims=64, img_size=64)


def built(build, family='dinov2', **changes):
    return build(family, dict(family=family) | V2 | changes)


@pytest.mark.parametrize(
    ('given', 'difference', 'setting'),
    [
        (dict(num_registers=4), r'4 registers \(the model: 0\)', 'num_registers=4'),
        (dict(ffn='swiglu'), r"ffn='swiglu' \(the model: gelu\)", "ffn='swiglu'"),
        (dict(family='dinov3'), r'rotary positions \(the model: learned\)', 'a family with rotary positions'),
        (dict(family='dinov3', patch_size=8), r'patches of 8 px \(the model: 16\)', 'patch_size=8'),
        (
            dict(num_registers=4, patch_size=8, img_size=32),
            r'4 registers \(the model: 0\), patches of 8 px \(the model: 16\), images of 32 px \(the model: 64\)',
            'num_registers=4, patch_size=8, img_size=32',
        ),
        (
            dict(family='dinov3', num_registers=4, ffn='swiglu', mlp_hidden_dims=96),
            r"4 registers \(the model: 0\), rotary positions \(the model: learned\), ffn='swiglu' \(the model: gelu\)",
            "num_registers=4, a family with rotary positions, ffn='swiglu'",
        ),
    ],
)
def test_the_difference_is_named_both_ways(given, difference, setting, build):
    file, model = built(build, **given), built(build)
    with pytest.raises(ValueError, match=rf'It is a network with .*{difference}') as info:
        model.load_state_dict(file.state_dict())
    assert setting in str(info.value)
    with pytest.raises(ValueError, match=r'It is a network with .* \(the model: '):
        file.load_state_dict(model.state_dict())


def test_another_number_of_registers(build):
    with pytest.raises(ValueError, match=r'with 2 registers \(the model: 4\)\. Build an arch with num_registers=2'):
        built(build, num_registers=4).load_state_dict(built(build, num_registers=2).state_dict())


def test_another_patch_size_of_rotary_positions(build):
    with pytest.raises(ValueError, match=r'with patches of 8 px \(the model: 16\)\. Build an arch with patch_size=8\.'):
        built(build, 'dinov3').load_state_dict(built(build, 'dinov3', patch_size=8).state_dict())


def test_another_patch_size_can_be_resampled(build):
    with pytest.raises(
        ValueError,
        match=r'64 px \(8x8 patches of 8 px\): set patch_size=8 and img_size=64 .* --patch-size 16 \(approximate\)',
    ):
        built(build).load_state_dict(built(build, patch_size=8).state_dict())


def test_foreign_files_too(build, tiny_source):
    file = tiny_source('timm-dinov2', reg_tokens=2, no_embed_class=True)
    with pytest.raises(ValueError, match=r'with 2 registers \(the model: 0\), learned') as info:
        built(build, 'dinov3').load_state_dict(file.state)
    assert 'learned positions (the model: rotary)' in str(info.value)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_only_differences_of_plain_vits_have_names(prefix, build):
    states = [built(build), built(build, mlp_hidden_dims=96), built(build, embed_dims=24), build('pvtv2')]
    same, *others = ({f'{prefix}{k}': v for k, v in net.state_dict().items()} for net in states)
    assert named_remedy(same, same) is None
    for other in others:
        assert named_remedy(other, same) is None
        with pytest.raises(ValueError, match=r'Use the arch\.json that was written beside the checkpoint'):
            check_state(other, same, 'net')
    registers = {f'{prefix}{k}': v for k, v in built(build, num_registers=1).state_dict().items()}
    assert 'num_registers=1' in named_remedy(registers | {'neck.weight': torch.ones(1)}, same)
