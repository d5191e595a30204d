"""Scoring in parts: any number of processes, any number of interruptions, the same numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from upvit_mm.pruning import shared_work
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.importance import exact_scores, exact_sums
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.shared_work import score_in_parts

NAMES = ['stages.0.embed', 'stages.0.blocks.0.v', 'stages.0.blocks.0.mlp_hidden']


@pytest.fixture
def net(family, build, randomise):
    backbone = build(family, out_indices=(-1,))
    return PosteriorNet(backbone, randomise(nn.Linear(backbone.arch.embed_dims[-1], 4), seed=7))


@pytest.fixture
def batches(image):
    x = image(64, 64, batch=7)
    return [Batch(part, [3 * k, 3 * k + 1, 3 * k + 2][: len(part)]) for k, part in enumerate(x.split(3))]


@pytest.fixture(params=[name for name, method in METHODS.items() if method.needs_images])
def sums_of(request, net):
    """A method as ``score_in_parts`` calls it."""
    method, settings = METHODS[request.param], dict(draws=2, seed=1, max_rows=256, amp=None)
    own = {name: settings[name] for name in method.settings}
    channels = {name: torch.arange(width) for name, width in widths(net).items()}
    return lambda batch, names: method.of_batch(net, batch, {n: channels[n] for n in names}, **own)


def widths(net) -> dict[str, int]:
    arch = net.backbone.arch
    return dict(zip(NAMES, (arch.embed_dims[0], arch.v_dims[0][0], arch.mlp_hidden_dims[0][0])))


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_means_are_those_of_the_plain_loop(net, batches, tmp_path):
    channels = {name: torch.arange(width) for name, width in widths(net).items()}
    scores = score_in_parts(
        batches, lambda b, names: exact_sums(net, b, {n: channels[n] for n in names}), NAMES, tmp_path, Crew()
    )
    plain = exact_scores(net, batches, NAMES)
    assert all(torch.allclose(scores[n], plain[n], rtol=1e-12) for n in NAMES)


@dataclass(frozen=True)
class OneAfterAnother(Crew):
    """A crew whose processes take their turns, the first one last; ``left`` is what they leave for it."""

    left: list = field(default_factory=list)

    def collect(self, value):
        self.left.append((self.rank, value))
        return None if self.rank else [value for _, value in sorted(self.left, key=lambda pair: pair[0])]


@pytest.mark.parametrize('size', [2, 5])
@pytest.mark.parametrize('shared', [True, False])
def test_any_number_of_processes_gives_the_same_bits(sums_of, batches, tmp_path, size, shared):
    """On a disk that they share, and each with a disk of its own."""
    alone = score_in_parts(batches, sums_of, NAMES, tmp_path / 'alone', Crew())
    left = []
    for rank in reversed(range(size)):
        folder = tmp_path / ('crew' if shared else f'crew{rank}')
        scores = score_in_parts(batches, sums_of, NAMES, folder, OneAfterAnother(rank, size, left))
        assert (scores is None) == bool(rank)
    assert equal(scores, alone)


def test_parts_of_two_processes_serve_three(sums_of, batches, tmp_path):
    alone = score_in_parts(batches, sums_of, NAMES, tmp_path / 'alone', Crew())
    score_in_parts(batches, sums_of, NAMES, tmp_path / 'crew', OneAfterAnother(1, 2))  # its first one was killed
    assert [path.name for path in (tmp_path / 'crew').iterdir()] == ['batch_000001.pt']
    left, found = [], []
    for rank in (2, 1, 0):
        crew = OneAfterAnother(rank, 3, left)
        scores = score_in_parts(batches, sums_of, NAMES, tmp_path / 'crew', crew, lambda *of: found.append(of))
    assert equal(scores, alone)
    assert found == [(name, 3) for name in NAMES]


@pytest.mark.parametrize('stop_after', [0, 1, 5, 8])
def test_an_interruption_changes_no_bit(sums_of, batches, tmp_path, stop_after, monkeypatch):
    monkeypatch.setattr(shared_work, 'SAVE_EVERY', -1.0)  # after every dim
    undisturbed = score_in_parts(batches, sums_of, NAMES, tmp_path / 'whole', Crew())
    calls = []

    def failing(batch, names):
        for name, sums in sums_of(batch, names):
            if len(calls) == stop_after:
                raise KeyboardInterrupt
            calls.append(name)
            yield name, sums

    with pytest.raises(KeyboardInterrupt):
        score_in_parts(batches, failing, NAMES, tmp_path / 'parts', Crew())
    found = []
    again = []

    def counted(batch, names):
        again.extend(names)
        return sums_of(batch, names)

    scores = score_in_parts(
        batches, counted, NAMES, tmp_path / 'parts', Crew(), resumed=lambda name, images: found.append((name, images))
    )
    assert equal(scores, undisturbed)
    assert len(found) + len(again) == 9
    assert len(found) == stop_after
    assert all(images == (1 if k >= 6 else 3) for k, (_, images) in enumerate(found))


def test_a_spoiled_part_is_made_again(sums_of, batches, tmp_path, caplog):
    whole = score_in_parts(batches, sums_of, NAMES, tmp_path, Crew())
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    with caplog.at_level('WARNING', 'upvit_mm'):
        assert equal(score_in_parts(batches, sums_of, NAMES, tmp_path, Crew()), whole)
    assert 'is damaged' in caplog.text


def test_no_images(sums_of, tmp_path):
    with pytest.raises(ValueError, match='no images'):
        score_in_parts([], sums_of, NAMES, tmp_path, Crew())
