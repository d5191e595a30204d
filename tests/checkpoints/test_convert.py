import logging
from dataclasses import replace

import pytest
import torch
from mmengine.config import Config
from timm.layers import SwiGLUPacked

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import convert_file, load_backbone, load_classifier, read_checkpoint, save_checkpoint, to_ours
from upvit_mm.files import sha256_of


@pytest.fixture(params=['timm-deit', 'timm-pvtv2'])
def timm_file(request, tiny_source, tmp_path):
    source = tiny_source(request.param)
    torch.save(source.state | source.head, tmp_path / 'timm.pth')
    return tmp_path / 'timm.pth'


def test_there_and_back_is_bit_identical_with_the_head(timm_file, tmp_path, identical):
    ours = convert_file(timm_file, tmp_path / 'ours.pth')
    timm = convert_file(ours, tmp_path / 'new' / 'timm.pth', to='timm')
    assert identical(load_classifier(ours), load_classifier(timm_file))
    assert identical(read_checkpoint(timm)['state_dict'], read_checkpoint(timm_file))


def test_any_layout_becomes_ours(source, tmp_path, identical):
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in source.state.items()}}, tmp_path / 'x.pth')
    path = convert_file(tmp_path / 'x.pth', tmp_path / 'ours.pth')
    assert identical(
        read_checkpoint(path)['state_dict'], {f'backbone.{k}': v for k, v in to_ours(source.state).items()}
    )


def test_file_says_where_it_comes_from(timm_file, tmp_path):
    meta = read_checkpoint(convert_file(timm_file, tmp_path / 'ours.pth'))['meta']
    assert meta['source'] == str(timm_file)
    assert meta['sha256'] == sha256_of(timm_file)


def test_prefix(tiny_source, tmp_path, identical):
    state = tiny_source('timm-deit').state
    torch.save({f'student.{k}': v for k, v in state.items()} | {'backbone.x': torch.ones(1)}, tmp_path / 'x.pth')
    path = convert_file(tmp_path / 'x.pth', tmp_path / 'timm.pth', to='timm', prefix='student')
    assert identical(read_checkpoint(path)['state_dict'], state)


def test_free_widths_do_not_fit_timm(family, build, tmp_path):
    torch.save(build(family).state_dict(), tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'fuses tensors of one width, but this model has .*Keep it in our layout'):
        convert_file(tmp_path / 'x.pth', tmp_path / 'timm.pth', to='timm')
    assert not (tmp_path / 'timm.pth').exists()


@pytest.fixture(params=['timm-deit', 'timm-pvtv2'])
def pruned(request, tiny_source, stock_arch, build):
    """A network of stock widths whose logits have other scales, timm's network of its widths, and the arch."""
    source = tiny_source(request.param)
    arch = ArchSpec.from_dict(stock_arch(source.family))
    arch = replace(arch, qk_scales=[[0.2 + i + j / 10 for j, _ in enumerate(s)] for i, s in enumerate(arch.qk_scales)])
    return build(source.family, arch.to_dict()).double(), source, arch


@pytest.mark.parametrize('way', ['meta.arch', 'config'])
def test_timm_computes_the_same_with_other_scales(way, pruned, image, distance, tmp_path):
    ours, timm, arch = pruned
    kind = f'upvit_mm.{type(ours).__name__}'
    text = Config(dict(model=dict(backbone=dict(type=kind, arch=arch.to_dict())))).pretty_text
    meta = {'arch': arch.to_dict()} if way == 'meta.arch' else {'cfg': text}
    save_checkpoint(tmp_path / 'x.pth', {f'backbone.{k}': v for k, v in ours.state_dict().items()}, **meta)
    content = read_checkpoint(convert_file(tmp_path / 'x.pth', tmp_path / 'timm.pth', to='timm'))
    timm.model.load_state_dict(content['state_dict'] | timm.head)
    x = image(64, 64).double()
    with torch.no_grad():
        expected = ours(x)
        assert max(distance(a, b) for a, b in zip(timm.features(x)[-len(expected) :], expected)) < 1e-10
    # what was folded has the usual scales, and is no longer of the pruned network's arch
    assert content['meta']['arch'] == replace(arch, qk_scales=None).to_dict()
    with pytest.raises(ValueError, match=r'is of another network'):
        load_classifier(tmp_path / 'timm.pth', arch=arch)


def test_usual_scales_are_not_touched(timm_file, stock_arch, tmp_path, identical):
    family = 'deit' if 'cls_token' in read_checkpoint(timm_file) else 'pvtv2'
    arch = ArchSpec.from_dict(stock_arch(family))
    save_checkpoint(tmp_path / 'x.pth', load_classifier(timm_file), arch=arch.to_dict())
    ours = convert_file(tmp_path / 'x.pth', tmp_path / 'ours.pth')
    assert read_checkpoint(ours)['meta']['arch'] == arch.to_dict()
    timm = read_checkpoint(convert_file(ours, tmp_path / 'back.pth', to='timm'))['state_dict']
    assert identical(timm, read_checkpoint(timm_file))


def test_a_file_without_an_arch_is_said_to_be_usual(timm_file, tmp_path, caplog):
    ours = convert_file(timm_file, tmp_path / 'ours.pth')
    assert 'arch' not in read_checkpoint(ours)['meta']
    with caplog.at_level(logging.WARNING, 'upvit_mm'):
        convert_file(ours, tmp_path / 'back.pth', to='timm')
    assert 'ours.pth: its architecture is not known; the usual scale of logits is used' in caplog.text


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_heads=[[3, 6, 3]]), r'num_heads\[0\] = \[3, 6, 3\]: in timm all blocks of a stage have the same'),
        (dict(mlp_hidden_dims=[[192, 96, 192]]), r'stage 0 has hidden widths \[96, 192\]: in timm all blocks of a'),
        (
            dict(qk_dims=24, v_dims=24),
            r'attn.q.weight has 24 rows: in timm q, k and v have the width of the embedding, 48',
        ),
    ],
)
def test_what_timm_cannot_hold(changes, message, stock_arch, build, tmp_path):
    arch = ArchSpec.from_dict(stock_arch('deit', **changes))
    save_checkpoint(tmp_path / 'x.pth', build('deit', arch.to_dict()).state_dict(), arch=arch.to_dict())
    with pytest.raises(ValueError, match=rf'{message}.*Keep it in our layout \(--to ours\)'):
        convert_file(tmp_path / 'x.pth', tmp_path / 'timm.pth', to='timm')


def test_an_arch_that_is_not_the_files_is_left_out(stock_arch, build, tmp_path, caplog):
    """As for a teacher beside the network that the file is of."""
    arch = ArchSpec.from_dict(stock_arch('deit'))
    other = stock_arch('deit', depths=[4], qk_scales=0.1)
    save_checkpoint(tmp_path / 'x.pth', build('deit', arch.to_dict()).state_dict(), arch=other)
    with caplog.at_level(logging.WARNING, 'upvit_mm'):
        path = convert_file(tmp_path / 'x.pth', tmp_path / 'timm.pth', to='timm')
    assert 'the architecture in it does not match these tensors' in caplog.text
    assert 'the usual scale of logits is used' in caplog.text
    assert 'arch' not in read_checkpoint(path)['meta']


def test_averages_and_heads_by_choice(tiny_source, tmp_path, identical):
    source = tiny_source('timm-deit')
    raw = source.state | source.head
    ema = {k: v + 1 for k, v in raw.items()}
    torch.save({'state_dict': raw, 'state_dict_ema': ema}, tmp_path / 'x.pth')
    for weights, expected in ((None, ema), ('ema', ema), ('raw', raw)):
        path = convert_file(tmp_path / 'x.pth', tmp_path / 'timm.pth', to='timm', weights=weights)
        assert identical(read_checkpoint(path)['state_dict'], expected)
    path = convert_file(tmp_path / 'x.pth', tmp_path / 'timm.pth', to='timm', head=False, weights='raw')
    assert identical(read_checkpoint(path)['state_dict'], source.state)


def test_unknown_target(timm_file, tmp_path):
    with pytest.raises(ValueError, match=r"to = 'mmdet': must be one of ours, timm"):
        convert_file(timm_file, tmp_path / 'x.pth', to='mmdet')


# ------------------------------------------------------------ DINOv2 and DINOv3

REGISTERS = dict(reg_tokens=4, no_embed_class=True)
GIANT = dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU)
DINO = {
    'dinov2': ('timm-dinov2', {}),
    'dinov2 giant with registers': ('timm-dinov2', REGISTERS | GIANT),
    'dinov3': ('timm-dinov3', dict(swiglu_mlp=False)),
    'dinov3 plus': ('timm-dinov3', {}),
}


@pytest.mark.parametrize('name', DINO)
def test_timm_loads_what_is_written_and_computes_the_same(name, tiny_source, image, distance, tmp_path):
    """Through our layout, with and without the arch in the file; LayerScale is ones, as it is folded."""
    source = tiny_source(DINO[name][0], **DINO[name][1])
    torch.save(source.state | source.head, tmp_path / 'timm.pth')
    ours = convert_file(tmp_path / 'timm.pth', tmp_path / 'ours.pth')
    assert read_checkpoint(ours)['meta']['family'] == source.family
    written = read_checkpoint(convert_file(ours, tmp_path / 'back.pth', to='timm'))['state_dict']
    assert all((v == 1).all() for k, v in written.items() if 'gamma' in k)
    x = image(64, 64).double()
    before = source.features(x)
    source.model.load_state_dict(written)
    assert distance(source.features(x)[0], before[0]) < 1e-12


def test_heads_of_a_stated_arch(tiny_source, build, tmp_path):
    """A DINOv3 whose heads are not 64 channels wide, as the published ones are."""
    source = tiny_source('timm-dinov3', num_heads=4)
    fields = dict(family='dinov3', embed_dims=[128], depths=[2], num_heads=4, num_registers=4, ffn='swiglu')
    arch = ArchSpec.from_dict(fields | dict(mlp_hidden_dims=192, img_size=64))
    ours = build('dinov3', arch.to_dict()).double()
    ours.load_state_dict(source.state)
    save_checkpoint(tmp_path / 'x.pth', ours.state_dict(), arch=arch.to_dict())
    path = convert_file(tmp_path / 'x.pth', tmp_path / 'timm.pth', to='timm')
    source.model.load_state_dict(read_checkpoint(path)['state_dict'] | source.head)
    save_checkpoint(tmp_path / 'y.pth', ours.state_dict())
    with pytest.raises(ValueError, match=r'2 heads of 64 channels do not turn as those of an unpruned network'):
        convert_file(tmp_path / 'y.pth', tmp_path / 'timm.pth', to='timm')


def test_rotary_pairs_of_a_pruned_network_do_not_fit_timm(stock_arch, build, tmp_path):
    arch = ArchSpec.from_dict(stock_arch('dinov3'))
    state = build('dinov3', arch.to_dict()).state_dict()
    key = 'stages.0.blocks.1.attn.rotary.frequencies'
    state[key] = state[key].roll(1, 0)
    save_checkpoint(tmp_path / 'x.pth', state, arch=arch.to_dict())
    with pytest.raises(ValueError, match=rf'{key}: 2 heads of 64 channels do not turn .*\(--to ours\)'):
        convert_file(tmp_path / 'x.pth', tmp_path / 'timm.pth', to='timm')


# ---------------------------------------------------------- patches of another size


def smooth(height, width):
    """Waves that are long compared with a patch, one in each channel."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing='ij')
    return torch.stack([(3 * y + 2 * x).sin(), (4 * x - y).cos(), (2 * y * x).sin()])[None]


@pytest.mark.parametrize(('old', 'new'), [(14, 16), (16, 32)])
def test_larger_patches_give_the_same_tokens(old, new, build, distance, tmp_path, caplog):
    fields = dict(family='dinov2', embed_dims=[48], depths=[2], num_heads=3, mlp_hidden_dims=96, num_registers=2)
    arch = ArchSpec.from_dict(fields | dict(patch_size=old, img_size=4 * old))
    before = build('dinov2', arch.to_dict())
    save_checkpoint(tmp_path / 'x.pth', before.state_dict(), arch=arch.to_dict())
    with caplog.at_level(logging.WARNING, 'upvit_mm'):
        path = convert_file(tmp_path / 'x.pth', tmp_path / 'y.pth', patch_size=new)
    assert f'resampled from {old} to {new} px, which is approximate' in caplog.text
    written = ArchSpec.from_dict(read_checkpoint(path)['meta']['arch'])
    assert written == replace(arch, patch_size=new, img_size=4 * new)
    after = build('dinov2', written.to_dict())
    after.load_state_dict(load_backbone(path, arch=written))
    constant = torch.tensor([0.3, -1.0, 2.0]).view(1, 3, 1, 1)
    small, large = 6 * old, 6 * new
    with torch.no_grad():
        tokens = [before(constant.expand(1, 3, small, small))[0], after(constant.expand(1, 3, large, large))[0]]
        assert distance(*tokens) < 1e-4
        tokens = [before(smooth(small, small))[0], after(smooth(large, large))[0]]
        assert distance(*tokens) < 0.03


def test_patches_are_resampled_without_an_arch_too(tiny_source, tmp_path, caplog):
    for name, setting in (('timm-dinov3', 'patch_size=14'), ('timm-dinov2', 'patch_size=14 and img_size=56')):
        torch.save(tiny_source(name).state, tmp_path / 'x.pth')
        with caplog.at_level(logging.WARNING, 'upvit_mm'):
            path = convert_file(tmp_path / 'x.pth', tmp_path / 'y.pth', patch_size=14)
        assert f'set {setting} in the arch' in caplog.text
        assert load_backbone(path)['stages.0.patch_embed.proj.weight'].shape[1:] == (3, 14, 14)


def test_what_has_no_patches_to_resample(tiny_source, tmp_path):
    for name, size, message in (
        ('timm-pvtv2', 8, r'patch_size = 8: only patches of a plain ViT can be resampled'),
        ('timm-deit', 0, r'patch_size = 0: must be at least 1 pixel'),
    ):
        torch.save(tiny_source(name).state, tmp_path / 'x.pth')
        with pytest.raises(ValueError, match=message):
            convert_file(tmp_path / 'x.pth', tmp_path / 'y.pth', patch_size=size)
