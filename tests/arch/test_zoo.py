import pytest
import torch

from upvit_mm.arch import arch_names, get_arch, resolve_arch

# Millions of parameters as published (DeiT: arXiv 2012.12877, PVTv2: 2106.13797), with the head of 1000 classes; DINO
# ViTs as timm builds them, without a head
PUBLISHED = {
    'deit-tiny': 5.72,
    'deit-small': 22.05,
    'deit-base': 86.57,
    'dinov2-small': 22.06,
    'dinov2-base': 86.58,
    'dinov2-large': 304.37,
    'dinov2-giant': 1136.48,
    'dinov2-small-reg': 22.06,
    'dinov2-base-reg': 86.58,
    'dinov2-large-reg': 304.37,
    'dinov2-giant-reg': 1136.49,
    'dinov3-small': 21.60,
    'dinov3-small-plus': 28.69,
    'dinov3-base': 85.66,
    'dinov3-large': 303.13,
    'dinov3-huge-plus': 840.59,
    'pvtv2-b0': 3.67,
    'pvtv2-b1': 14.01,
    'pvtv2-b2': 25.36,
    'pvtv2-b3': 45.24,
    'pvtv2-b4': 62.56,
    'pvtv2-b5': 81.96,
}


def test_names():
    targets = {'dinov2-tiny', 'dinov3-tiny'}  # nobody has published them; networks are pruned to them
    assert tuple(name for name in arch_names() if name not in targets) == tuple(PUBLISHED)
    assert [get_arch(n).name for n in PUBLISHED] == list(PUBLISHED)


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameter_count_is_the_published_one(name, build):
    arch = get_arch(name)
    with torch.device('meta'):
        backbone = build(arch.family, name)
    embed_dims = arch.embed_dims[-1]
    is_dino = arch.family.startswith('dino')
    others = 2 * embed_dims * arch.depths[0] if is_dino else 1000 * embed_dims + 1000  # LayerScale, or a head
    millions = (sum(p.numel() for p in backbone.parameters()) + others) / 1e6
    assert millions == pytest.approx(PUBLISHED[name], abs=0.005)  # the published figure is rounded


def test_resolve_takes_a_name_a_path_a_mapping_and_a_spec(tmp_path):
    spec = get_arch('pvtv2-b0')
    path = spec.save_json(tmp_path / 'arch.json')
    assert [resolve_arch(a, ['pvtv2']) for a in ('pvtv2-b0', path, str(path), spec.to_dict(), spec)] == [spec] * 5


def test_unknown_name_lists_the_known_ones_and_the_closest():
    with pytest.raises(ValueError, match=r"arch = 'pvtv2_b0': unknown name. Known: deit-tiny, .*, pvtv2-b5") as info:
        resolve_arch('pvtv2_b0')
    assert "Did you mean 'pvtv2-b0'?" in str(info.value)


def test_a_file_of_an_own_arch_without_its_ending(tmp_path, monkeypatch):
    """Named like a stock one: the file is meant."""
    monkeypatch.chdir(tmp_path)
    get_arch('pvtv2-b0').save_json('pvtv2-b0-cells.json')
    with pytest.raises(ValueError, match=r"Did you mean 'pvtv2-b0-cells.json'\?$"):
        resolve_arch('pvtv2-b0-cells')
    with pytest.raises(ValueError, match=r"arch = 'resnet50'.*arch.json\.\Z"):
        get_arch('resnet50')


def test_missing_path():
    with pytest.raises(FileNotFoundError, match=r"no/arch.json' does not exist"):
        resolve_arch('no/arch.json')


@pytest.mark.parametrize(
    ('name', 'wanted', 'backbone'), [('deit-tiny', 'pvtv2', 'UPDeiT'), ('pvtv2-b0', 'deit', 'UPPVTv2')]
)
def test_wrong_family_names_the_right_backbone(name, wanted, backbone):
    family = get_arch(name).family
    with pytest.raises(
        ValueError, match=rf"arch family = '{family}': .* builds {wanted}; use type='upvit_mm.{backbone}'"
    ):
        resolve_arch(name, [wanted])


def test_none_is_no_arch():
    with pytest.raises(ValueError, match='arch = None'):
        resolve_arch(None)


def test_zoo_cannot_be_changed_through_what_it_returns():
    data = get_arch('deit-tiny').to_dict()
    data['depths'][0] = 3
    assert get_arch('deit-tiny').depths == (12,)
