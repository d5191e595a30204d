"""The arithmetic of ``hybrid``: which channels are near the cut of an estimate, and how exact scores order them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from upvit_mm.pruning.importance import Scores
from upvit_mm.pruning.planner import joint_scores


def tied(scores: Scores) -> Scores:
    """Scores with those of q/k and v of each block summed, as ``tie_qkv`` ranks them.

    Where q/k and v of a block have different widths, no plan ties them, and their scores stay.
    """
    total = dict(scores)
    for name in (name for name in scores if name.endswith('.qk')):
        v = f'{name.removesuffix("qk")}v'
        if v in scores and len(scores[v]) == len(scores[name]):
            total[name] = total[v] = sum(joint_scores(scores, (name, v)))
    return total


def near_cut(
    scores: Scores,
    kept: dict[str, Tensor],
    groups: dict[str, int],
    share: float,
    partners: Mapping[str, Tensor] = MappingProxyType({}),
) -> Scores:
    """Channels near the cut between kept and removed ones; ``hybrid`` scores these exactly.

    Args:
        scores: by dim name.
        kept: of a plan made from them, by dim name.
        groups: runs (heads) of each dim in which a choice was made.
        share: share of each run, centred on the cut.
        partners: ``PrunableDim.partners`` of dims with pairs; both channels of a pair are near, or neither.

    Returns:
        Channels by dim name, sorted; dims that keep or lose whole runs are left out.
    """
    chosen = {}
    for name, indices in kept.items():
        run = len(scores[name]) // groups[name]
        window = max(2, round(share * run))
        near = []
        for k, (part, lost) in enumerate(_runs(scores[name], indices, groups[name])):
            if 0 < lost < run:
                start = min(max(lost - window // 2, 0), run - min(window, run))
                near.append(part.argsort(stable=True)[start : start + window] + k * run)
        if near:
            channels = torch.cat(near)
            pairs = (channels, partners[name][channels]) if name in partners else (channels,)
            chosen[name] = torch.cat(pairs).unique()
    return chosen


def rerank(scores: Scores, exact: Scores, near: dict[str, Tensor], groups: dict[str, int]) -> Scores:
    """Order the channels near the cut by their exact scores; the set of values stays the same.

    The channels get the estimates' values in the new order. So the other channels keep their place, and dims stay
    comparable.
    """
    result = {name: values.clone() for name, values in scores.items()}
    for name, channels in near.items():
        run = len(scores[name]) // groups[name]
        for k in range(groups[name]):
            members = channels[(channels >= k * run) & (channels < (k + 1) * run)]
            order = members[exact[name][members].argsort(stable=True)]
            result[name][order] = scores[name][members].sort().values
    return result


def _runs(scores: Tensor, kept: Tensor, groups: int) -> Iterator[tuple[Tensor, int]]:
    """Scores of each run, and how many of its channels are removed."""
    run = len(scores) // groups
    stays = torch.zeros(len(scores), dtype=torch.bool).index_fill(0, kept, True)
    yield from ((part, int((~flags).sum())) for part, flags in zip(scores.split(run), stays.split(run)))
