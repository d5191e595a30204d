"""A pruned detector that follows the dense one."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch

from upvit_mm.pruning.batch import Batch
from upvit_mm.workflow import healing
from upvit_mm.workflow.healing import heal
from upvit_mm.workflow.whole_detector import build_detector

READER = 'neck.lateral_convs.0.conv.weight'


@pytest.fixture(autouse=True)
def a_second_a_step(monkeypatch):
    """A clock that goes on by a second whenever it is read, so that a run has the same steps on every machine."""
    ticks = itertools.count()
    monkeypatch.setattr(healing, 'LEARNING_RATE', 1e-4)  # the networks are tiny and nearly equal
    monkeypatch.setattr(healing, 'time', SimpleNamespace(monotonic=lambda: float(next(ticks))))


@pytest.fixture
def pair(detector_of, randomise):
    """A dense detector, and one of which a reader of the maps is a little off."""
    torch.manual_seed(0)
    dense = build_detector(detector_of('retinanet'))
    randomise(dense.backbone)
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.get_parameter(READER).mul_(0.5)
    return dense, pruned


@pytest.fixture
def batches(image):
    return [Batch(part, range(2)) for part in image(64, 64, batch=6).split(2)]


def test_it_follows_the_dense_detector(pair, batches, tmp_path, identical):
    dense, pruned = pair
    before = {k: v.clone() for k, v in pruned.state_dict().items()}
    reference = copy.deepcopy(dense.state_dict())
    found = heal(dense, pruned, [READER], batches, 2.0, 0, tmp_path / 'part.pt')
    assert found['after'] < 0.9 * found['before']
    changed = {name for name, tensor in pruned.state_dict().items() if not torch.equal(tensor, before[name])}
    assert READER in changed
    assert all(name == READER or name.startswith('backbone.') for name in changed)
    assert identical(dense.state_dict(), reference)


def test_it_goes_on_after_an_interruption(pair, batches, tmp_path, identical):
    """The time of the first run is spent, so the second only gives its best weights."""
    dense, pruned = pair
    again = copy.deepcopy(pruned)
    found = heal(dense, pruned, [READER], batches, 0.5, 0, tmp_path / 'part.pt')
    assert heal(dense, again, [READER], batches, 0.5, 0, tmp_path / 'part.pt') == found
    assert identical(again.state_dict(), pruned.state_dict())
    (tmp_path / 'part.pt').write_bytes(b'damaged')
    assert heal(dense, copy.deepcopy(pruned), [READER], batches, 0.05, 0, tmp_path / 'part.pt')['before'] < 1


def test_it_never_ends_worse_than_it_began(pair, batches, tmp_path, identical):
    dense, _ = pair
    same = copy.deepcopy(dense)
    assert heal(dense, same, [], batches, 0.05, 0, tmp_path / 'part.pt') == {'before': 0.0, 'after': 0.0}
    assert identical(same.state_dict(), dense.state_dict())


def test_bad_input(pair, batches, tmp_path, detector_of, tiny_arch):
    dense, pruned = pair
    with pytest.raises(ValueError, match='heal: 1 batch of pictures; two or more are needed'):
        heal(dense, pruned, [], batches[:1], 1.0, 0, tmp_path / 'part.pt')
    arch = tiny_arch('pvtv2')
    whole = build_detector(detector_of('mask2former', type='upvit_mm.UPPVTv2', arch=arch))
    cut = build_detector(
        detector_of('mask2former', type='upvit_mm.UPPVTv2', arch=arch | {'embed_dims': [8, 24, 35, 40]})
    )
    with pytest.raises(ValueError, match=r'the heads read maps .* of 8x.* and in the dense detector of 16x'):
        heal(whole, cut, [], batches, 1.0, 0, tmp_path / 'part.pt')
