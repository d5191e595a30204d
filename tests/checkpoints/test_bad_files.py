"""Files that are not what they should be: malicious, damaged, of another kind, without a backbone, not there."""

import pickle

import numpy as np
import pytest
import torch

from upvit_mm.checkpoints import load_backbone, load_classifier, read_checkpoint


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('zipped', [True, False])
def test_malicious_pickle_is_refused_and_does_nothing(tmp_path, zipped, tiny_source, build, stock_arch):
    mark, path = tmp_path / 'owned', tmp_path / 'x.pth'
    content = {'state_dict': tiny_source('timm-deit').state, 'extra': Malicious(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    assert mark.exists(), 'the pickle of this test is not malicious'
    mark.unlink()
    backbone = build('deit', stock_arch('deit'), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    for read in (lambda: read_checkpoint(path), lambda: load_backbone(path), backbone.init_weights):
        with pytest.raises(ValueError, match=r"x.pth' is refused: it holds \w*io.open, which .* could run code"):
            read()
        assert not mark.exists()


def test_refusal_does_not_advise_an_unsafe_load(tmp_path):
    torch.save({'extra': Malicious(tmp_path / 'owned')}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'save its state dict alone with torch\.save') as info:
        read_checkpoint(tmp_path / 'x.pth')
    assert 'weights_only' not in str(info.value)


def test_getattr_reaches_nothing(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (np.ndarray, 'tofile')

    torch.save({'extra': Reach(), 'a': torch.ones(1)}, tmp_path / 'x.pth')
    assert callable(torch.load(tmp_path / 'x.pth', weights_only=False)['extra'])
    assert not callable(read_checkpoint(tmp_path / 'x.pth')['extra'])


def test_what_others_load_is_neither_allowed_nor_forbidden(tmp_path):
    """The placeholders are torch's safe globals while we read, and only then."""
    before = [*torch.serialization.get_safe_globals(), Malicious]
    torch.serialization.add_safe_globals([Malicious])
    torch.save({'extra': np.float64(1)}, tmp_path / 'x.pth')
    read_checkpoint(tmp_path / 'x.pth')
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with pytest.raises(pickle.UnpicklingError, match='scalar'):
        torch.load(tmp_path / 'x.pth', weights_only=True)
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before[:-1])


def whole_file(zipped: bool, tmp_path) -> bytes:
    torch.save({'a': torch.ones(500)}, tmp_path / 'whole', _use_new_zipfile_serialization=zipped)
    return (tmp_path / 'whole').read_bytes()


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('part', [0.0, 0.1, 0.5, 0.99])
def test_truncated_file(tmp_path, zipped, part):
    content = whole_file(zipped, tmp_path)
    (tmp_path / 'x.pth').write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"x.pth' is corrupt or no checkpoint: .*Download or write it again"):
        read_checkpoint(tmp_path / 'x.pth')


@pytest.mark.parametrize(
    'content',
    [b'<!DOCTYPE html><html>404</html>', b'version https://git-lfs.github.com/spec/v1\n', pickle.dumps([1, 2])],
    ids=['html', 'git-lfs', 'pickle'],
)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_file_of_another_kind(tmp_path, content, suffix):
    path = tmp_path / f'x{suffix}'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\{suffix}' is corrupt or no checkpoint"):
        read_checkpoint(path)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_damaged_bytes_give_a_value_error_or_a_dict(tmp_path):
    """A damaged pickle makes torch raise nearly anything, IndexError and AssertionError among them."""
    rng = np.random.default_rng(0)
    content = np.frombuffer(whole_file(False, tmp_path), np.uint8)
    messages = []
    for _ in range(150):
        damaged = content.copy()
        damaged[rng.integers(0, 400, 5)] = rng.integers(0, 256, 5)
        (tmp_path / 'x.pth').write_bytes(damaged.tobytes())
        try:
            assert isinstance(read_checkpoint(tmp_path / 'x.pth'), dict)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 75
    assert all("x.pth' is" in message for message in messages)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_missing_file(tmp_path, suffix):
    for read in (read_checkpoint, load_backbone, load_classifier):
        with pytest.raises(FileNotFoundError, match=rf"gone\{suffix}' does not exist"):
            read(tmp_path / f'gone{suffix}')


def test_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([torch.ones(1)], r'holds a list, not a dict of tensors'),
        (torch.ones(1), r'holds a Tensor, not a dict of tensors'),
        ({'epoch': 1, 'lr': 0.1}, r'holds no tensors; its keys are: epoch, lr'),
        ({'state_dict': {}}, r'holds no tensors; its keys are: state_dict'),
        ({}, r'holds no tensors; its keys are: none'),
        ({'conv1.weight': torch.ones(1)}, r'layout not recognised: conv1.weight'),
    ],
)
def test_file_without_a_backbone(tmp_path, content, message):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path / 'x.pth')


def test_prefix_that_no_key_has(tiny_source, tmp_path):
    torch.save(tiny_source('timm-deit').state, tmp_path / 'x.pth')
    with pytest.raises(
        ValueError, match=r"no key with prefix 'model.backbone.'; its first keys are cls_token, pos_embed"
    ):
        load_backbone(tmp_path / 'x.pth', prefix='model.backbone')


@pytest.mark.parametrize('size', [0, 1, 100, 3_000, 5_000, 10_000, 50_000, 200_000])
def test_a_file_that_was_cut_off_is_named(tmp_path, size):
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': {'a': torch.zeros(300, 300)}}, path)
    assert path.stat().st_size > 300_000
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"checkpoint '.*x\.pth'"):
        read_checkpoint(path)
