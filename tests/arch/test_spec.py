import dataclasses
import json

import pytest

from upvit_mm.arch import ArchSpec

SMALL = dict(family='pvtv2', embed_dims=[8, 16, 24, 32], depths=[1, 2, 1, 1], num_heads=1, mlp_hidden_dims=20)


def spec(**changes) -> ArchSpec:
    return ArchSpec.from_dict(SMALL | changes)


# ---------------------------------------------------------------- shorthand


def test_one_number_holds_for_every_block():
    assert spec(num_heads=2).num_heads == ((2,), (2, 2), (2,), (2,))


def test_one_number_per_stage_holds_for_its_blocks():
    assert spec(mlp_hidden_dims=[10, 20, 30, 40]).mlp_hidden_dims == ((10,), (20, 20), (30,), (40,))


def test_stages_may_mix_the_spellings():
    assert spec(mlp_hidden_dims=[10, [20, 21], 30, [40]]).mlp_hidden_dims == ((10,), (20, 21), (30,), (40,))


def test_stage_fields_take_one_number_too():
    assert spec(sr_ratios=2, embed_dims=8).sr_ratios == (2, 2, 2, 2)
    assert spec(sr_ratios=2, embed_dims=8).embed_dims == (8, 8, 8, 8)


def test_widths_default_to_the_stream_and_scales_to_the_head_width():
    default = spec(num_heads=[1, 2, 4, 8])
    assert default.qk_dims == default.v_dims == ((8,), (16, 16), (24,), (32,))
    assert default.qk_scales == ((8**-0.5,), (8**-0.5, 8**-0.5), (6**-0.5,), (4**-0.5,))
    assert default.sr_ratios == (1, 1, 1, 1)


def test_scale_of_a_pruned_network_is_kept():
    assert spec(qk_dims=4, qk_scales=0.125).qk_scales[1] == (0.125, 0.125)


def test_derived_values(tiny_arch):
    deit, pvtv2 = (ArchSpec.from_dict(tiny_arch(f)) for f in ('deit', 'pvtv2'))
    assert (deit.num_stages, deit.strides, deit.pos_embed_grid) == (1, (16,), 4)
    assert (pvtv2.num_stages, pvtv2.strides) == (4, (4, 8, 16, 32))


# -------------------------------------------------------------------- as data


def test_json_round_trip(family, tiny_arch, tmp_path):
    before = ArchSpec.from_dict(tiny_arch(family))
    path = before.save_json(tmp_path / 'new' / 'arch.json')
    assert path == tmp_path / 'new' / 'arch.json'
    assert ArchSpec.from_json(path) == before
    assert ArchSpec.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_dict_holds_plain_lists_and_the_version(tiny_arch):
    data = ArchSpec.from_dict(tiny_arch('pvtv2')).to_dict()
    assert data['version'] == 1
    assert data['qk_dims'] == [[7], [10, 15], [18, 9], [20]]


def test_config_dict_will_do(tiny_arch):
    config = pytest.importorskip('mmengine.config').ConfigDict(tiny_arch('deit'))
    assert ArchSpec.from_dict(config) == ArchSpec.from_dict(tiny_arch('deit'))


def test_frozen_and_hashable():
    a, b = spec(), spec()
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.depths = (1, 1, 1, 1)
    assert len({a, b, spec(mlp_hidden_dims=21)}) == 2


# --------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(family='swin'), r"family = 'swin': must be one of deit, dinov2, dinov3, pvtv2"),
        (dict(name=3), r'name = 3: must be a string'),
        (dict(depths=[1, 2, 1]), r'depths = \[1, 2, 1\]: pvtv2 has 4 stage\(s\), got 3'),
        (dict(depths=[1, 0, 1, 1]), r'depths\[1\] = 0: must be a whole number of at least 1'),
        (dict(embed_dims=[8, 16, 24, 32.0]), r'embed_dims\[3\] = 32.0: must be a whole number'),
        (dict(embed_dims='8'), r"embed_dims\[0\] = '8': must be a whole number"),
        (dict(num_heads=True), r'num_heads\[0\]\[0\] = True: must be a whole number'),
        (dict(mlp_hidden_dims=[10, 20, 30]), r'mlp_hidden_dims = \[10, 20, 30\]: pvtv2 has 4 stage\(s\), got 3'),
        (dict(mlp_hidden_dims=[10, [20, 21, 22], 30, 40]), r'mlp_hidden_dims\[1\] = \[20, 21, 22\]: .*depth 2, got 3'),
        (dict(mlp_hidden_dims=[10, [20, -1], 30, 40]), r'mlp_hidden_dims\[1\]\[1\] = -1: must be a whole number'),
        (dict(num_heads=3), r'qk_dims\[0\]\[0\] = 8: must be a multiple of num_heads\[0\]\[0\] = 3'),
        (dict(num_heads=2, v_dims=[8, [16, 7], 24, 32]), r'v_dims\[1\]\[1\] = 7: .*num_heads\[1\]\[1\] = 2'),
        (dict(qk_scales=0), r'qk_scales\[0\]\[0\] = 0: must be a finite number above 0'),
        (dict(qk_scales=float('nan')), r'qk_scales\[0\]\[0\] = nan: must be a finite number'),
        (dict(sr_ratios=[8, 4, 2, 0]), r'sr_ratios\[3\] = 0: must be a whole number'),
        (dict(patch_size=0), r'patch_size = 0: must be a whole number'),
        (dict(num_registers=4), 'num_registers = 4: pvtv2 has no registers'),
        (dict(num_registers=-1), 'num_registers = -1: must be a whole number of at least 0'),
        (dict(num_registers=True), 'num_registers = True: must be a whole number'),
        (dict(ffn='relu'), "ffn = 'relu': must be one of gelu, swiglu"),
        (dict(ffn='swiglu'), "ffn = 'swiglu': pvtv2 has a convolution"),
        (dict(img_size=100), r'img_size = 100: must be a multiple of patch_size = 16'),
        (dict(hidden_dims=3, zebra=1), r'unknown key\(s\) hidden_dims, zebra; known keys: family, embed_dims'),
        (dict(version=2), r'arch version = 2: this package reads version 1'),
        (dict(version=True), r'arch version = True'),
    ],
)
def test_wrong_field_is_named_with_its_value_and_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        spec(**changes)


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match=r'arch lacks key\(s\) depths, mlp_hidden_dims'):
        ArchSpec.from_dict({k: v for k, v in SMALL.items() if k not in ('depths', 'mlp_hidden_dims')})


def test_deit_has_no_spatial_reduction(tiny_arch):
    with pytest.raises(ValueError, match=r'sr_ratios = \[2\]: deit has no spatial reduction'):
        ArchSpec.from_dict(tiny_arch('deit', sr_ratios=2))


def test_arch_must_be_a_mapping():
    with pytest.raises(ValueError, match=r'arch = 3: must be a mapping'):
        ArchSpec.from_dict(3)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"arch": ', r"arch.json' is not JSON"),
        ('[1]', r"arch.json' must hold one object with the key \"arch\""),
        ('{"model": {}}', r'must hold one object with the key "arch"'),
        ('{"arch": 7}', r'arch = 7: must be a mapping'),
    ],
)
def test_bad_arch_file(tmp_path, content, message):
    (tmp_path / 'arch.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        ArchSpec.from_json(tmp_path / 'arch.json')


def test_binary_arch_file(tmp_path):
    (tmp_path / 'arch.json').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='is not JSON'):
        ArchSpec.from_json(tmp_path / 'arch.json')


def test_missing_arch_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.json' does not exist"):
        ArchSpec.from_json(tmp_path / 'gone.json')
