"""What lies near the cut, and how exact scores order it."""

from __future__ import annotations

import torch

from upvit_mm.pruning.hybrid import near_cut, rerank, tied


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
