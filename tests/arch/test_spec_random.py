"""Any architecture: a valid one builds, survives its file and can be pruned; an invalid one is a ValueError."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.arch.family import FAMILIES
from upvit_mm.arch.spec import BLOCK_FIELDS, FFNS, LARGEST
from upvit_mm.pruning import make_plan, prunable_dims, slice_state

settings.register_profile('repeatable', derandomize=True, deadline=None, database=None)
settings.load_profile('repeatable')

widths = st.integers(1, 9)
scales = st.floats(1e-3, 10.0)


@st.composite
def archs(draw) -> dict[str, Any]:
    """The mapping of a small valid architecture of either family, in any spelling."""
    family = draw(st.sampled_from(list(FAMILIES)))
    stages = FAMILIES[family].num_stages
    depths = [draw(st.integers(1, 2)) for _ in range(stages)]

    def per_block(values):
        return [[draw(values) for _ in range(depth)] for depth in depths]

    heads = per_block(st.integers(1, 3))
    arch = dict(family=family, embed_dims=[draw(widths) for _ in depths], depths=depths, num_heads=heads)
    arch |= dict(mlp_hidden_dims=per_block(widths), in_channels=draw(st.integers(1, 3)), img_size=32)
    for name in ('qk_dims', 'v_dims'):
        unit = 2 if name == 'qk_dims' and FAMILIES[family].rotary else 1
        arch[name] = [[h * unit * draw(st.integers(1, 4)) for h in stage] for stage in heads]
    if draw(st.booleans()):
        arch['qk_scales'] = per_block(scales)
    if FAMILIES[family].num_class_tokens:
        arch['patch_size'] = draw(st.sampled_from([4, 8, 16, 32]))
        arch |= dict(num_registers=draw(st.integers(0, 3)), ffn=draw(st.sampled_from(FFNS)))
    else:
        arch['sr_ratios'] = [draw(st.integers(1, limit)) for limit in (8, 4, 2, 1)]
    for name in ('num_heads', 'mlp_hidden_dims', 'qk_dims', 'v_dims'):  # equal blocks as one number
        arch[name] = [stage[0] if len(set(stage)) == 1 and draw(st.booleans()) else stage for stage in arch[name]]
    return arch


def built(spec: ArchSpec) -> torch.nn.Module:
    from upvit_mm.models import build_backbone

    return build_backbone(spec).eval()


@settings(max_examples=40)
@given(archs())
def test_a_valid_arch_builds_and_gives_maps_of_its_shapes(arch):
    spec = ArchSpec.from_dict(arch)
    assert ArchSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with torch.no_grad():
        maps = built(spec)(torch.randn(1, spec.in_channels, 32, 64))
    assert [tuple(x.shape) for x in maps] == [
        (1, width, 32 // stride, 64 // stride) for width, stride in zip(spec.embed_dims, spec.strides)
    ]
    assert all(torch.isfinite(x).all() for x in maps)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])  # one file written again
@given(archs())
def test_a_valid_arch_survives_its_file(tmp_path, arch):
    spec = ArchSpec.from_dict(arch)
    assert resolve_arch(str(spec.save_json(tmp_path / 'arch.json'))) == spec


@settings(max_examples=40)
@given(archs(), st.randoms(use_true_random=False))
def test_any_pruning_of_a_valid_arch_builds(arch, chance):
    """As many channels of each head, at random."""
    spec = ArchSpec.from_dict(arch)
    kept = {}
    for name, dim in prunable_dims(spec).items():
        run = dim.size // dim.groups
        part = run // dim.unit
        count = chance.randint(1, part)
        places = [sorted(chance.sample(range(part), count)) for _ in range(dim.groups)]
        kept[name] = [
            g * run + copy * part + k for g, of_head in enumerate(places) for copy in range(dim.unit) for k in of_head
        ]
    plan = make_plan(spec, kept)
    dense, sliced = built(spec), built(plan.target_arch)
    state = slice_state({f'backbone.{k}': v for k, v in dense.state_dict().items()}, plan)
    sliced.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    dims = prunable_dims(plan.target_arch)
    assert {name: dim.size for name, dim in dims.items()} == {name: len(indices) for name, indices in kept.items()}


# ------------------------------------------------------------------------------ invalid

numbers = st.one_of(
    st.integers(max_value=0),
    st.just(10**400),
    st.floats(allow_nan=True, allow_infinity=True).filter(lambda x: not (math.isfinite(x) and x > 0)),
    st.booleans(),
)
junk = st.one_of(numbers, st.none(), st.text(max_size=5), st.binary(max_size=3), st.dictionaries(st.text(), st.none()))
nested = st.recursive(junk, lambda inside: st.lists(inside, max_size=5), max_leaves=12)


def refused(data: Any) -> str:
    """What the ValueError says; nothing else may come of it, and no arch."""
    with pytest.raises(ValueError, match=r'.') as info:
        ArchSpec.from_dict(data)
    return str(info.value)


@settings(max_examples=300)
@given(archs(), st.data())
def test_a_field_of_nonsense_is_named(arch, data):
    optional = {'qk_dims', 'v_dims', 'qk_scales', 'sr_ratios'}
    name = data.draw(st.sampled_from([*arch, 'version']))
    value = data.draw(st.text(max_size=5).filter(lambda x: x not in FAMILIES) if name == 'family' else nested)
    assume(not (value is None and name in optional))
    assume(not (name == 'num_registers' and value == 0))
    assert name.partition('[')[0] in refused(arch | {name: value})


@settings(max_examples=200)
@given(archs(), st.data())
def test_a_value_of_nonsense_inside_a_field_is_named(arch, data):
    spec = ArchSpec.from_dict(arch).to_dict()
    name = data.draw(st.sampled_from(['embed_dims', 'depths', 'sr_ratios', *BLOCK_FIELDS]))
    values = spec[name]
    i = data.draw(st.integers(0, len(values) - 1))
    if name in BLOCK_FIELDS and data.draw(st.booleans()):
        values, i = values[i], data.draw(st.integers(0, len(values[i]) - 1))
    values[i] = data.draw(junk)
    assert name in refused(spec)


@settings(max_examples=100)
@given(archs(), st.data())
def test_lists_of_another_length_are_named(arch, data):
    spec = ArchSpec.from_dict(arch).to_dict()
    name = data.draw(st.sampled_from(['embed_dims', 'sr_ratios', *BLOCK_FIELDS]))
    values = spec[name]
    if name in BLOCK_FIELDS and data.draw(st.booleans()):
        values = data.draw(st.sampled_from(values))
    if data.draw(st.booleans()):
        values.append(values[-1])
    else:
        values.pop()
    assert name in refused(spec)


@settings(max_examples=100)
@given(archs(), st.data())
def test_heads_that_do_not_divide_are_named(arch, data):
    spec = ArchSpec.from_dict(arch).to_dict()
    name = data.draw(st.sampled_from(['qk_dims', 'v_dims']))
    i = data.draw(st.integers(0, len(spec['depths']) - 1))
    j = data.draw(st.integers(0, spec['depths'][i] - 1))
    spec['num_heads'][i][j] = heads = data.draw(st.integers(2, 50))
    spec[name][i][j] = data.draw(st.integers(1, 200).filter(lambda width: width % heads))
    message = refused(spec)
    assert 'must be a multiple of num_heads' in message or 'must be even' in message  # of rotary channels


@settings(max_examples=100)
@given(archs(), st.one_of(st.text(), st.integers(), st.none(), st.tuples(st.text())))
def test_unknown_keys_are_named(arch, key):
    assume(key not in ArchSpec.from_dict(arch).to_dict() and key != 'sha256')
    assert f'unknown key(s) {key}' in refused(arch | {key: 1})


@settings(max_examples=100)
@given(archs(), st.data())
def test_missing_keys_are_named(arch, data):
    name = data.draw(st.sampled_from(['family', 'embed_dims', 'depths', 'num_heads', 'mlp_hidden_dims']))
    del arch[name]
    assert f'arch lacks key(s) {name}' in refused(arch)


@settings(max_examples=100)
@given(nested)
def test_what_is_no_mapping_of_fields_is_refused(value):
    assert 'arch' in refused(value)


plain = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(['arch', 'x']), inside),
    max_leaves=8,
)
texts = st.binary(max_size=60) | plain.map(lambda value: json.dumps(value).encode())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])  # one file written again
@given(texts)
def test_any_other_file_is_refused_by_name(tmp_path, content):
    (tmp_path / 'arch.json').write_bytes(content)
    with pytest.raises(ValueError, match=r"arch file '.*arch\.json'"):
        ArchSpec.from_json(tmp_path / 'arch.json')


@pytest.mark.parametrize('depth', [100, 700, 5000])
def test_deep_nesting_is_refused(tmp_path, depth):
    path = tmp_path / 'arch.json'
    fields = (
        f'"family": "deit", "depths": 1, "num_heads": 1, "mlp_hidden_dims": 4, "embed_dims": {"[" * depth}{"]" * depth}'
    )
    path.write_text(f'{{"arch": {{{fields}}}}}')
    with pytest.raises(ValueError, match=r"arch file '.*arch\.json'"):
        ArchSpec.from_json(path)


@pytest.mark.parametrize(
    'name', ['embed_dims', 'depths', 'num_heads', 'qk_dims', 'v_dims', 'mlp_hidden_dims', 'img_size']
)
def test_a_number_that_would_fill_the_memory_is_refused(tiny_arch, name):
    assert f'and at most {LARGEST}' in refused(tiny_arch('deit') | {name: LARGEST + 1})
