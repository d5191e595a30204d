"""What a file says of its architecture beside its tensors: heads, logit scales, strides."""

import logging
from dataclasses import replace

import pytest
import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import check_arch_of, known_arch, load_backbone, load_classifier, save_checkpoint


def config_text(backbone: dict, **model) -> str:
    """A config as mmengine keeps it in a checkpoint."""
    return Config(dict(data_root='x', model=dict(type='Model', backbone=backbone, **model))).pretty_text


@pytest.fixture
def arch(family, stock_arch) -> ArchSpec:
    return ArchSpec.from_dict(stock_arch(family))


def own(arch: ArchSpec) -> dict:
    return {'type': {'deit': 'upvit_mm.UPDeiT', 'pvtv2': 'upvit_mm.UPPVTv2'}[arch.family], 'arch': arch.to_dict()}


WAYS = {
    'meta.arch': lambda arch: {'arch': arch.to_dict()},
    'config': lambda arch: {'cfg': config_text(own(arch), neck=dict(type='FPN'))},
    'config of mmcv 1': lambda arch: {'config': config_text(own(arch))},
    'semi-supervised': lambda arch: {'cfg': f'model = dict(detector=dict(backbone={own(arch)!r}))'},
}


@pytest.mark.parametrize('way', WAYS)
def test_a_network_of_other_scales_is_refused(way, arch, build, tmp_path):
    """Vanilla under the arch.json of a pruned network, and the other way round: no tensor shows it."""
    pruned = replace(arch, qk_scales=[[0.125 for _ in stage] for stage in arch.qk_scales], name='pruned')
    path, state = tmp_path / 'x.pth', build(arch.family, arch.to_dict()).state_dict()
    for built, trained in ((pruned, arch), (arch, pruned)):
        save_checkpoint(path, state, **WAYS[way](trained))
        there, here = (f'{spec.qk_scales[0][0]:.6g}' for spec in (trained, built))
        for load in (load_backbone, load_classifier):
            with pytest.raises(
                ValueError, match=r"'.*x.pth' is of another network than arch .*use the arch\.json"
            ) as info:
                load(path, arch=built)
            assert f"qk_scales[0][0] = {there} in the file's own arch, {here} in the arch that is built" in str(
                info.value
            )
            assert load(path, arch=trained)
            assert load(path)


@pytest.mark.parametrize('way', WAYS)
def test_a_network_of_other_heads_is_refused(way, stock_arch):
    arch = ArchSpec.from_dict(stock_arch('pvtv2'))
    trained = replace(arch, num_heads=[[1], [1], [5, 5], [8]])
    with pytest.raises(
        ValueError, match=r"num_heads\[1\]\[0\] = 1 in the file's own arch, 2 in the arch that is built"
    ):
        check_arch_of({'meta': WAYS[way](trained)}, arch, 'x.pth')


def test_names_and_images_do_not_matter(arch):
    other = replace(arch, name='another', img_size=2 * arch.img_size)
    check_arch_of({'meta': {'arch': other.to_dict()}}, arch, 'x.pth')


def test_a_file_that_says_nothing_passes(arch, caplog):
    texts = ['model = build()', 'model = dict(backbone=make())', 'x = 1', 'model = dict(', 'model = dict(neck=dict())']
    texts += ["model = dict(backbone=dict(type='UPDeiT', arch=read('arch.json')))", '(' * 10_000]
    texts += [
        "model = dict(backbone=dict(type='UPDeiT', arch='work/arch.json'))",
        "model = dict(backbone=dict(type='ResNet'))",
    ]
    texts += ["model = dict(backbone=dict(type='UPDeiT', arch=dict(family='deit')))"]
    with caplog.at_level(logging.DEBUG, 'upvit_mm'):
        for meta in ({}, None, [], {'arch': 3}, {'arch': {'family': 'x'}}, *({'cfg': text} for text in texts)):
            check_arch_of({'meta': meta}, arch, 'x.pth')
            assert known_arch({'meta': meta}) is None
        check_arch_of({}, arch, 'x.pth')
    assert 'the config in the file cannot be read: line 1 is no dict of settings' in caplog.text
    assert 'the architecture in the file cannot be read: arch lacks key(s)' in caplog.text


def test_a_config_is_read_and_not_run(arch, tmp_path):
    mark = tmp_path / 'run'
    call = f"open({str(mark)!r}, 'w')"
    text = f"{call}\nmodel = dict(backbone=dict(type='UPDeiT', arch=dict(family={call})))"
    assert known_arch({'meta': {'cfg': text}}) is None
    assert not mark.exists()


def test_a_stock_name_in_a_config():
    meta = {'cfg': "model = dict(backbone=dict(type='upvit_mm.UPPVTv2', arch='pvtv2-b1'))"}
    assert known_arch({'meta': meta}).name == 'pvtv2-b1'


def test_other_widths_are_left_to_the_tensors(arch, build, tmp_path):
    """They say more: which tensors differ."""
    wider = replace(arch, mlp_hidden_dims=77, qk_scales=[[0.125] * depth for depth in arch.depths])
    check_arch_of({'meta': {'arch': wider.to_dict()}}, arch, 'x.pth')


# -------------------------------------------------------- foreign networks

DEIT = dict(type='VisionTransformer', arch=dict(embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=192))
PVT = dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=16, num_layers=[1, 1, 2, 1], num_heads=[1, 2, 5, 8])


@pytest.mark.parametrize(
    ('foreign', 'difference'),
    [
        (DEIT, None),
        (
            DEIT | dict(arch=DEIT['arch'] | dict(num_heads=6)),
            r'num_heads\[0\]\[0\] = 6 in .* \(VisionTransformer\), 3 in',
        ),
        (DEIT | dict(patch_cfg=dict(stride=8)), r'strides\[0\] = 8 in .* \(VisionTransformer\), 16 in'),
        (DEIT | dict(arch=DEIT['arch'] | dict(num_heads=6, embed_dims=96)), None),  # the tensors differ
        (PVT, None),
        (PVT | dict(embed_dims=64), None),
        (PVT | dict(strides=[4, 2, 2, 1]), r'strides\[3\] = 16 in .* \(PyramidVisionTransformerV2\), 32 in'),
        (dict(type='ResNet', depth=50), None),
    ],
)
def test_foreign_networks_in_a_config(foreign, difference, stock_arch):
    family = 'pvtv2' if foreign['type'].startswith('mmdet') else 'deit'
    content, arch = {'meta': {'cfg': config_text(foreign)}}, ArchSpec.from_dict(stock_arch(family))
    if difference is None:
        check_arch_of(content, arch, 'x.pth')
    else:
        with pytest.raises(ValueError, match=difference):
            check_arch_of(content, arch, 'x.pth')
    pruned = replace(arch, qk_scales=[[0.125] * depth for depth in arch.depths])
    if difference is None and foreign in (DEIT, PVT):
        with pytest.raises(ValueError, match=r'qk_scales\[0\]\[0\] = 0.25 in'):
            check_arch_of(content, pruned, 'x.pth')


@pytest.mark.parametrize(('name', 'heads'), [('deit-small', 6), ('deit-s', 6), ('dinov2-small', 6)])
def test_named_architectures_of_mmpretrain(name, heads):
    family = name.partition('-')[0]
    arch = ArchSpec(family=family, embed_dims=(384,), depths=(12,), num_heads=12, mlp_hidden_dims=1536)
    content = {'meta': {'cfg': config_text(dict(type='VisionTransformer', arch=name))}}
    with pytest.raises(ValueError, match=rf'num_heads\[0\]\[0\] = {heads} in .*, 12 in'):
        check_arch_of(content, arch, 'x.pth')
    check_arch_of(content, replace(arch, num_heads=[[6] * 12], qk_scales=None), 'x.pth')


def test_meta_that_is_no_mapping_is_read_past(tmp_path, build):
    state = build('deit').state_dict()
    torch.save({'meta': 'by hand', 'state_dict': state}, tmp_path / 'x.pth')
    assert len(load_backbone(tmp_path / 'x.pth', arch=build('deit').arch)) == len(state)
