"""Scoring in parts: any number of processes, any number of interruptions, the same numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn

from upvit_mm.pruning import scoring
from upvit_mm.pruning.importance import Batch, fisher_sums, kl_scores, kl_sums, taylor_sums
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.scoring import Crew, near_cut, rerank, score_in_parts, tied

NAMES = ['stages.0.embed', 'stages.0.blocks.0.v', 'stages.0.blocks.0.mlp_hidden']


@pytest.fixture
def net(family, build, randomise):
    backbone = build(family, out_indices=(-1,))
    return PosteriorNet(backbone, randomise(nn.Linear(backbone.arch.embed_dims[-1], 4), seed=7))


@pytest.fixture
def batches(image):
    x = image(64, 64, batch=7)
    return [Batch(part, [3 * k, 3 * k + 1, 3 * k + 2][: len(part)]) for k, part in enumerate(x.split(3))]


@pytest.fixture(params=['kl', 'fisher', 'taylor'])
def sums_of(request, net):
    """A method as ``score_in_parts`` calls it."""
    if request.param == 'kl':
        channels = {name: torch.arange(width) for name, width in widths(net).items()}
        return lambda batch, names: kl_sums(net, batch, {n: channels[n] for n in names})
    method = partial(fisher_sums, draws=2, seed=1) if request.param == 'fisher' else taylor_sums
    return lambda batch, names: ((n, sums) for n, sums in method(net, batch, NAMES) if n in names)


def widths(net) -> dict[str, int]:
    arch = net.backbone.arch
    return dict(zip(NAMES, (arch.embed_dims[0], arch.v_dims[0][0], arch.mlp_hidden_dims[0][0])))


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_means_are_those_of_the_plain_loop(net, batches, tmp_path):
    channels = {name: torch.arange(width) for name, width in widths(net).items()}
    scores = score_in_parts(
        batches, lambda b, names: kl_sums(net, b, {n: channels[n] for n in names}), NAMES, tmp_path, Crew()
    )
    plain = kl_scores(net, batches, NAMES)
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
    monkeypatch.setattr(scoring, 'SAVE_EVERY', -1.0)  # after every dim
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


# ------------------------------------------------------------------------ hybrid


def test_near_cut_takes_the_ranks_around_it():
    scores = {'a': torch.arange(20.0).flip(0), 'b': torch.arange(20.0), 'c': torch.arange(20.0)}
    kept = {'a': torch.arange(10), 'b': torch.tensor([*range(4, 10), *range(14, 20)]), 'c': torch.arange(20)}
    near = near_cut(scores, kept, {'a': 1, 'b': 2, 'c': 2}, share=0.4)
    assert near['a'].tolist() == list(range(6, 14))  # 10 go: ranks 6 to 13
    assert near['b'].tolist() == [2, 3, 4, 5, 12, 13, 14, 15]  # 4 of 10 go in each run
    assert 'c' not in near


def test_near_cut_stays_inside_and_may_cover_all():
    scores = {'a': torch.arange(10.0)}
    assert near_cut(scores, {'a': torch.arange(1, 10)}, {'a': 1}, 0.4)['a'].tolist() == [0, 1, 2, 3]
    assert near_cut(scores, {'a': torch.tensor([9])}, {'a': 1}, 0.4)['a'].tolist() == [6, 7, 8, 9]
    assert near_cut(scores, {'a': torch.tensor([9])}, {'a': 1}, 1.0)['a'].tolist() == list(range(10))
    assert near_cut(scores, {'a': torch.arange(5, 10)}, {'a': 1}, 0.01)['a'].tolist() == [4, 5]


def test_rerank_orders_by_exact_scores_and_keeps_the_values():
    scores = {'a': torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]), 'b': torch.tensor([1.0, 2])}
    exact = {'a': torch.tensor([0.0, 9, 8, 7, 0, 1, 2, 0])}
    near = {'a': torch.tensor([1, 2, 3, 5, 6])}
    result = rerank(scores, exact, near, {'a': 2, 'b': 1})
    assert result['a'].tolist() == [1, 4, 3, 2, 5, 6, 7, 8]
    assert result['b'].tolist() == [1, 2]
    assert scores['a'].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_tied_dims_are_ranked_by_their_sum():
    """The channels around the cut of the sum are looked at, in both dims, and both values keep their order by it."""
    qk, v = torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.tensor([9.0, 1, 7, 3, 5, 1])
    scores = {'b.qk': qk, 'b.v': v, 'b.mlp_hidden': torch.arange(3.0)}
    total = tied(scores)
    assert total['b.qk'].tolist() == total['b.v'].tolist() == [10, 3, 10, 7, 10, 7]
    assert total['b.mlp_hidden'] is scores['b.mlp_hidden']
    kept = {name: torch.tensor([0, 2, 4]) for name in ('b.qk', 'b.v')}
    near = near_cut(total, kept, dict.fromkeys(kept, 1), share=0.5)
    assert near['b.qk'].tolist() == near['b.v'].tolist() == [0, 2, 5]  # ranks 2 to 4 of 1, 3, 5, 0, 2, 4
    exact = tied({'b.qk': torch.tensor([0.0, 0, 1, 0, 0, 2]), 'b.v': torch.tensor([0.0, 0, 9, 0, 0, 0])})
    result = rerank(scores, exact, near, dict.fromkeys(kept, 1))
    assert result['b.qk'].tolist() == [1, 2, 6, 4, 5, 3]
    assert result['b.v'].tolist() == [1, 1, 9, 3, 5, 7]
