"""Comparisons of whole networks at several sizes."""

from __future__ import annotations

import math

import pytest
import torch

from upvit_mm.arch import ArchSpec
from upvit_mm.compare.token_dropping import drop_tokens
from upvit_mm.consistency import check_grids, common_stages, compare, contrast
from upvit_mm.data import image_files as image_module
from upvit_mm.models.network import Network, maps_of
from upvit_mm.pruning import make_plan

SIZES = ((32, 32), (100, 75), (224, 224), (333, 500), (800, 1333))
LABELS = {'deit': ['block1', 'block2', 'block3', 'block4'], 'pvtv2': ['stage0', 'stage1', 'stage2', 'stage3']}


def measures(figures):
    return {name: value for name, value in figures.items() if name != 'grid'}


def test_a_network_with_itself(pair, family, images):
    done = []
    results = compare(pair.dense, pair.dense, images, [(64, 64), (64, 96)], report=done.append)
    assert list(results) == ['64x64', '64x96']
    assert sum(done) == 2 * len(images)
    for stages in results.values():
        assert list(stages) == LABELS[family]
        for name, figures in list(stages.items())[:-1]:
            assert [figures['cka'], figures['relation']] == pytest.approx([1, 1]), name
            assert figures['r2'] == pytest.approx(1, abs=0.1), name
    stride = pair.dense.arch.strides[-1]
    last = results['64x96'][LABELS[family][-1]]
    assert last['grid'] == [64 // stride, 96 // stride]
    assert last['tokens'] == 6 * 64 * 96 // stride**2


def test_measures_are_those_of_the_maps(pair, family, images, image):
    """Kept-channel error of every stage, by hand, the class token left out."""
    results = compare(pair.dense, pair.pruned, images, [(64, 96)], pair.plan)['64x96']
    _, (indices, _) = common_stages([pair.dense.arch, pair.pruned.arch])
    (pixels,) = images.batches((64, 96))
    maps = [network.maps(pixels, indices) for network in (pair.dense, pair.pruned)]
    for k, (figures, dense, pruned) in enumerate(zip(results.values(), *maps)):
        kept = dense[:, pair.plan.kept[f'stages.{k if family == "pvtv2" else 0}.embed']]
        expected = ((pruned - kept).norm() / kept.norm()).item()
        assert figures['kept_error'] == pytest.approx(expected, rel=1e-4)
        assert 0 < expected < 2


def test_few_tokens_are_warned_of(pair, family, images, caplog):
    with caplog.at_level('WARNING', 'upvit_mm'):
        compare(pair.dense, pair.pruned, images, [(64, 96)])
    few = ', '.join(LABELS[family]) if family == 'deit' else 'stage3'
    assert f'at 64x96 {few}: fewer than two tokens per channel' in caplog.text


def test_batches_do_not_matter(pair, images, monkeypatch):
    whole = compare(pair.dense, pair.pruned, images, [(64, 96)], pair.plan)['64x96']
    monkeypatch.setattr(image_module, 'PIXELS_AT_ONCE', 4 * 64 * 96)
    parts = compare(pair.dense, pair.pruned, images, [(64, 96)], pair.plan)['64x96']
    for label, figures in whole.items():
        assert measures(parts[label]) == pytest.approx(measures(figures), abs=1e-4, nan_ok=True)


def test_grids_are_equal_at_any_size(pair):
    grids = check_grids(pair.dense, {'pruned': pair.pruned}, SIZES)
    strides = pair.dense.arch.strides * (4 if pair.dense.arch.family == 'deit' else 1)
    for height, width in SIZES:
        expected = [(-(-height // s), -(-width // s)) for s in strides]
        assert grids[f'{height}x{width}'] == expected


def test_another_grid_is_named(pair):
    class Cropped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.arch = pair.pruned.backbone, pair.pruned.arch
            self.out_indices, self.out_type = (), 'featmap'

        def forward(self, images):
            return tuple(m[..., 1:] for m in maps_of(self.inner, images, self.out_indices))

    with pytest.raises(ValueError, match=r'token grids of cropped, \w+ differ: \d+x\d+ and \d+x\d+ \(dense and pruned'):
        check_grids(pair.dense, {'cropped': Network(Cropped())}, [(64, 96)])


def test_deit_of_other_depth_is_compared_at_equal_shares(build, images):
    deep = build(
        'deit',
        ArchSpec.from_dict(build('deit').arch.to_dict()).with_widths(
            dict(depths=[12], num_heads=3, qk_dims=24, v_dims=12, mlp_hidden_dims=50, qk_scales=0.3)
        ),
    )
    half = build('deit', deep.arch.with_widths(dict(depths=[6])))
    short = build('deit', deep.arch.with_widths(dict(depths=[3])))
    labels, indices = common_stages([deep.arch, half.arch])
    assert labels == ['block2', 'block5', 'block8', 'block11']
    assert indices == [(2, 5, 8, 11), (1, 2, 4, 5)]
    assert common_stages([deep.arch, short.arch, half.arch])[1] == [(3, 7, 11), (0, 1, 2), (1, 3, 5)]
    results = compare(Network(deep), Network(short), images, [(64, 64)])
    assert list(results['64x64']) == ['block3', 'block7', 'block11']


def test_the_backbone_is_left_as_it_was(build, family, image):
    settings = dict(out_indices=(-1,)) | (dict(out_type='cls_token') if family == 'deit' else {})
    backbone = build(family, **settings)
    before = backbone.out_indices
    maps = maps_of(backbone, image(64, 64), (0, 1))
    assert [m.ndim for m in maps] == [4, 4]
    assert backbone.out_indices == before
    assert getattr(backbone, 'out_type', 'cls_token') == 'cls_token'
    with pytest.raises(ValueError, match='image of 8x8 pixels'):
        maps_of(backbone, image(8, 8), (0,))
    assert backbone.out_indices == before


def test_pairs_that_do_not_match(pair, build, tiny_arch, images):
    other = build('pvtv2' if pair.dense.arch.family == 'deit' else 'deit')
    with pytest.raises(ValueError, match=r'tiny-\w+ \(\w+\) with \d stage\(s\) of stride .* and tiny-\w+'):
        compare(pair.dense, Network(other), images, [(64, 64)])
    fine = build('deit', tiny_arch('deit', patch_size=8))
    with pytest.raises(ValueError, match=r'stride 16 and tiny-deit \(deit\) with 1 stage\(s\) of stride 8'):
        compare(Network(build('deit')), Network(fine), images, [(64, 64)])


def test_a_plan_of_other_networks_is_refused(pair, images):
    whole = make_plan(pair.dense.arch, {})
    with pytest.raises(ValueError, match=r"the plan's target has embed_dims = .*, the pruned network .*plan.json"):
        compare(pair.dense, pair.pruned, images, [(64, 64)], whole)
    with pytest.raises(ValueError, match=r"the plan's source has embed_dims"):
        compare(pair.pruned, pair.pruned, images, [(64, 64)], pair.plan)
    with pytest.raises(ValueError, match=r"the plan's target has .*, the b network"):
        contrast(pair.dense, {'a': pair.pruned, 'b': pair.pruned}, images, [(64, 64)], {'a': pair.plan, 'b': whole})


def test_contrast_is_many_comparisons(pair, images):
    variants = {'pruned': pair.pruned, 'dense': pair.dense, 'dropping': drop_tokens(pair.dense, 0.5)}
    results = contrast(pair.dense, variants, images, [(64, 96)], {'pruned': pair.plan})
    alone = compare(pair.dense, pair.pruned, images, [(64, 96)], pair.plan)
    label = next(iter(alone['64x96']))
    assert measures(results['pruned']['64x96'][label]) == pytest.approx(measures(alone['64x96'][label]))
    assert results['dense']['64x96'][label]['cka'] == pytest.approx(1)
    assert results['dropping']['64x96'][label]['cka'] < 1
    assert 'kept_error' not in results['dropping']['64x96'][label]


def test_one_token_has_no_structure(build, images):
    network = Network(build('pvtv2'))
    last = compare(network, network, images, [(32, 32)])['32x32']['stage3']
    assert last['grid'] == [1, 1]
    assert math.isnan(last['cka_within'])
    assert math.isnan(last['relation'])
    assert last['cka'] == pytest.approx(1)
