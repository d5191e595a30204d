import functools
import http.server
import logging
import pickle
import stat
import threading
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from timm.models.deit import VisionTransformerDistilled

from upvit_mm import __version__
from upvit_mm.checkpoints import load_backbone, load_classifier, read_checkpoint, save_checkpoint, to_ours


def prefixed(prefix, state):
    return {f'{prefix}{k}': v for k, v in state.items()}


# ------------------------------------------------------------ what files hold

WRAPPINGS = {
    'plain': lambda state: state | {'head.weight': torch.ones(7, 3), 'head.bias': torch.ones(7)},
    'official': lambda state: {'model': state | {'head.weight': torch.ones(7, 3)}},
    'mmengine': lambda state: {'meta': {'epoch': 3}, 'state_dict': prefixed('backbone.', state)},
    'detector': lambda state: {
        'state_dict': prefixed('backbone.', state) | {'neck.w': torch.ones(2), 'bbox_head.w': torch.ones(2)}
    },
    'parallel': lambda state: {'state_dict': prefixed('module.backbone.', state)},
    'parallel-plain': lambda state: {'state_dict': prefixed('module.', state)},
}


@pytest.mark.parametrize('wrapping', WRAPPINGS)
def test_backbone_of_any_layout_in_any_wrapping(source, wrapping, tmp_path, identical):
    torch.save(WRAPPINGS[wrapping](source.state), tmp_path / 'x.pth')
    assert identical(load_backbone(tmp_path / 'x.pth'), to_ours(source.state))


@pytest.mark.parametrize('wrapping', ['plain', 'parallel'])
def test_our_own_layout_in_a_wrapping(family, wrapping, build, tmp_path, identical):
    state = build(family).state_dict()
    torch.save(WRAPPINGS[wrapping](state), tmp_path / 'x.pth')
    assert identical(load_backbone(tmp_path / 'x.pth'), state)


def test_old_format_and_safetensors(source, tmp_path, identical):
    torch.save({'model': source.state}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({k: v.contiguous() for k, v in source.state.items()}, tmp_path / 'x.safetensors')
    for name in ('old.pth', 'x.safetensors'):
        assert identical(load_backbone(tmp_path / name), to_ours(source.state))


def test_prefix_picks_one_of_several_backbones(tiny_source, build, tmp_path, identical):
    teacher, student = tiny_source('timm-deit').state, build('pvtv2').state_dict()
    torch.save({'state_dict': prefixed('teacher.', teacher) | prefixed('backbone.', student)}, tmp_path / 'x.pth')
    assert identical(load_backbone(tmp_path / 'x.pth', prefix='teacher'), to_ours(teacher))
    assert identical(load_backbone(tmp_path / 'x.pth', prefix='teacher.'), to_ours(teacher))
    assert identical(load_backbone(tmp_path / 'x.pth'), student)


def test_dropped_heads_are_logged(tiny_source, tmp_path, caplog):
    torch.save(WRAPPINGS['detector'](tiny_source('timm-pvtv2').state), tmp_path / 'x.pth')
    with caplog.at_level(logging.INFO, 'upvit_mm'):
        load_backbone(tmp_path / 'x.pth')
    assert 'dropped 2 tensors outside the backbone (bbox_head, neck)' in caplog.text


def test_distilled_file_loses_its_token_and_second_head(timm_source, tmp_path, caplog, identical):
    distilled = timm_source(VisionTransformerDistilled(img_size=64, embed_dim=48, depth=3, num_heads=3, num_classes=7))
    torch.save({'model': distilled.state | distilled.head}, tmp_path / 'x.pth')
    with caplog.at_level(logging.INFO, 'upvit_mm'):
        assert identical(load_backbone(tmp_path / 'x.pth'), to_ours(distilled.state))
        state = load_classifier(tmp_path / 'x.pth')
    assert torch.equal(state['head.fc.weight'], distilled.head['head.weight'])
    assert not any('dist' in k for k in state)
    assert 'dropped dist_token' in caplog.text
    assert 'dropped 2 tensors outside backbone and head (head_dist)' in caplog.text


# ----------------------------------------------------------------- classifiers


@pytest.mark.parametrize('head', ['head.', 'head.fc.', 'head.layers.head.'])
def test_classifier_head_of_any_name(head, tiny_source, tmp_path, identical):
    backbone = tiny_source('mmpretrain-deit').state
    weight, bias = torch.randn(7, 48), torch.randn(7)
    body = backbone if head == 'head.' else prefixed('backbone.', backbone)
    torch.save({'state_dict': body | {f'{head}weight': weight, f'{head}bias': bias}}, tmp_path / 'x.pth')
    expected = prefixed('backbone.', to_ours(backbone)) | {'head.fc.weight': weight, 'head.fc.bias': bias}
    assert identical(load_classifier(tmp_path / 'x.pth'), expected)


def test_classifier_without_a_head(tiny_source, tmp_path, identical):
    backbone = tiny_source('timm-pvtv2').state
    torch.save(backbone, tmp_path / 'x.pth')
    assert identical(load_classifier(tmp_path / 'x.pth'), prefixed('backbone.', to_ours(backbone)))


# ----------------------------------------------------------------- mmengine


def test_loss_histories_of_mmengine_are_passed_over(tiny_source, tmp_path, identical):
    """Their pickles call ``getattr`` and numpy's functions: neither is called, whichever numpy wrote the file."""
    from mmengine.logging import MessageHub

    hub = MessageHub('for this test')
    hub.update_scalar('train/loss', 0.5)
    hub.update_info('best', np.float64(3.5))
    state = tiny_source('timm-deit').state
    content = {'state_dict': state, 'message_hub': hub.state_dict(), 'meta': {'epoch': 3}}
    torch.save(content, tmp_path / 'run.pth')
    other = tmp_path / 'run of another numpy.pth'
    with zipfile.ZipFile(tmp_path / 'run.pth') as source, zipfile.ZipFile(other, 'w') as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith('data.pkl'):
                assert b'__builtin__\ngetattr' in data
                ours, theirs = (b'numpy._core.', b'numpy.core.')[:: 1 if b'numpy._core.' in data else -1]
                assert ours in data
                data = data.replace(ours, theirs)
            target.writestr(name, data)
    for path in (tmp_path / 'run.pth', other):
        read = read_checkpoint(path)
        assert identical(load_backbone(path), to_ours(state))
        assert read['meta'] == {'epoch': 3}
        histories = read['message_hub']['log_scalars']
        assert list(histories) == ['train/loss']
        assert vars(histories['train/loss']) == {}


# -------------------------------------------------------------------- addresses


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder served over http, torch's download folder beside it, and the paths asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    (tmp_path / 'www').mkdir()
    handler = functools.partial(Handler, directory=tmp_path / 'www')
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield tmp_path / 'www', f'http://127.0.0.1:{httpd.server_port}', asked
        httpd.shutdown()


def test_address_is_downloaded_once(server, tiny_source, identical):
    folder, address, asked = server
    state = tiny_source('timm-deit').state
    torch.save(state, folder / 'x.pth')
    for _ in range(2):
        assert identical(load_backbone(f'{address}/x.pth?download=1'), to_ours(state))
    assert asked == ['/x.pth?download=1']


def test_files_of_one_name_at_two_addresses(server, tiny_source):
    folder, address, _ = server
    for k in range(2):
        (folder / str(k)).mkdir()
        torch.save({key: value + k for key, value in tiny_source('timm-deit').state.items()}, folder / f'{k}/model.pth')
    first, second = (load_backbone(f'{address}/{k}/model.pth') for k in range(2))
    assert torch.equal(first['cls_token'] + 1, second['cls_token'])


def test_address_that_gives_nothing(server, tmp_path):
    _, address, _ = server
    with pytest.raises(FileNotFoundError, match=r'gone.pth.*404'):
        load_backbone(f'{address}/gone.pth')
    assert not list(tmp_path.glob('hub/**/gone.pth'))


# --------------------------------------------------------------------- saving


def test_saved_file_says_where_it_comes_from(tmp_path, identical):
    state = {'w': torch.arange(3.0)}
    path = save_checkpoint(tmp_path / 'new' / 'x.pth', state, tool='prune', arguments=['--ratio', 0.5], seed=3)
    content = read_checkpoint(path)
    assert identical(content['state_dict'], state)
    assert content['meta'] == {
        'format_version': 1,
        'upvit_mm_version': __version__,
        'tool': 'prune',
        'arguments': ['--ratio', 0.5],
        'seed': 3,
    }


def test_mmengine_reads_it(tmp_path, identical):
    from mmengine.runner import load_checkpoint

    linear, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    path = save_checkpoint(tmp_path / 'x.pth', linear.state_dict())
    load_checkpoint(target, str(path), strict=True)
    assert identical(target.state_dict(), linear.state_dict())


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    whole = torch.zeros(1_000_000)
    path = save_checkpoint(tmp_path / 'x.pth', {'a': whole[:10], 'b': torch.nn.Parameter(torch.ones(2, 3)).T})
    assert path.stat().st_size < 10_000
    content = read_checkpoint(path)['state_dict']
    assert content['b'].is_contiguous()
    assert not content['b'].requires_grad


def test_failed_writing_keeps_the_old_file(tmp_path):
    path = save_checkpoint(tmp_path / 'x.pth', {'a': torch.ones(1)})
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(path, {'a': torch.zeros(1)}, tool=lambda: None)  # functions cannot be pickled
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['x.pth']
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_a_head_without_a_bias(tiny_source, tmp_path):
    torch.save({**tiny_source('timm-deit').state, 'head.weight': torch.ones(7, 32)}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'its head has no bias \(head.bias\); add one of zeros'):
        load_classifier(tmp_path / 'x.pth')
