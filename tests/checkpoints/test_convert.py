import pytest
import torch

from upvit_mm.checkpoints import convert_file, load_classifier, read_checkpoint, to_ours
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


def test_unknown_target(timm_file, tmp_path):
    with pytest.raises(ValueError, match=r"to = 'mmdet': must be one of ours, timm"):
        convert_file(timm_file, tmp_path / 'x.pth', to='mmdet')
