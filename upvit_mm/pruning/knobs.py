"""Which widths a budget may choose: one knob for each width, and the score that is lost at each step of the knob."""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning.dims import PrunableDim, prunable_dims
from upvit_mm.pruning.planner import check_tied, head_scores, joint_scores
from upvit_mm.pruning.table import block_name


@dataclass(frozen=True)
class Grain:
    """Which widths a budget may choose.

    Attributes:
        round_to: widths are multiples of it; those of q, k and v in each head. Dense widths are always allowed.
        min_share: no width becomes smaller than this share of its dense width, or than ``round_to``.
        head_policy: ``'within'`` narrows heads, ``'select'`` removes whole heads.
        tie_qkv: q/k and v keep the same width and channels.
        pair_qkv: they keep the same width, where their dense widths are equal; for budgets in time, because the fused
            kernel takes as long for a narrow q/k as for the wider v.
        fixed: names of dims that keep their dense width.
    """

    round_to: int = 8
    min_share: float = 0.1
    head_policy: str = 'within'
    tie_qkv: bool = False
    pair_qkv: bool = False
    fixed: Collection[str] = ()

    def __post_init__(self):
        if self.round_to < 1:
            raise ValueError(f'round_to = {self.round_to}: must be at least 1.')
        if not 0 <= self.min_share <= 1:
            raise ValueError(f'min_share = {self.min_share}: must lie in 0 to 1.')
        if self.head_policy not in ('within', 'select'):
            raise ValueError(
                f"head_policy = {self.head_policy!r}: a budget takes 'within' or 'select'; 'regroup' needs a target "
                'that names its heads.'
            )


@dataclass
class Knob:
    """Dims that shrink together, step by step.

    Attributes:
        sizes: dense width by dim; if they differ (q/k and v), the dims lose whole heads.
        widths: allowed widths of the first dim, ascending; the other dims keep the same share.
        lost: score that is lost at each of these widths; 0 at the last.
        step: index of the current width.
    """

    sizes: dict[str, int]
    widths: list[int]
    lost: list[float] = field(default_factory=list)
    step: int = -1

    def __post_init__(self):
        self.step = len(self.widths) - 1

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    def at(self, step: int) -> dict[str, int]:
        """Width by dim at a step."""
        return {name: size * self.widths[step] // self.widths[-1] for name, size in self.sizes.items()}


def widths_at(knobs: Sequence[Knob]) -> dict[str, int]:
    """Current width by dim of all knobs."""
    return {name: width for knob in knobs for name, width in knob.at(knob.step).items()}


def set_share(knobs: Sequence[Knob], share: float) -> None:
    """Set every knob to its highest step of at most a share of the dense width, or to its lowest step."""
    for knob in knobs:
        knob.step = max(bisect.bisect_right(knob.widths, share * knob.widths[-1] * (1 + 1e-9)) - 1, 0)


def knobs_of(source: ArchSpec, grain: Grain, scores: Mapping[str, Tensor] | None) -> list[Knob]:
    """One knob for each dim; in regular networks one for all dims of a kind in a stage. Tied dims share a knob.

    Args:
        source: the dense architecture.
        grain: which widths there are.
        scores: by dim name; None = dims of a kind in a stage share a knob, and no score is lost.

    Raises:
        ValueError: ``tie_qkv`` where q/k and v of a block have different widths.
    """
    members: dict[tuple, list[list[PrunableDim]]] = {}
    for dims in _shrinking_together(source, grain):
        first = dims[0]
        place = (first.stage, first.block) if scores is not None else (first.stage, *((d.size, d.groups) for d in dims))
        members.setdefault((first.kind, *place), []).append(dims)
    knobs = []
    for alike in members.values():
        ladder = _ladder(alike[0][0], grain)
        lost = [] if scores is None else _losses(alike[0], scores, ladder, grain)
        knobs.append(Knob({dim.name: dim.size for dims in alike for dim in dims}, ladder, lost))
    return knobs


def _shrinking_together(source: ArchSpec, grain: Grain) -> list[list[PrunableDim]]:
    """Lists of dims that keep the same share: q/k and v of a block are one list if tied, paired or if they lose whole
    heads."""
    dims = prunable_dims(source)
    if not (grain.tie_qkv or grain.pair_qkv) and grain.head_policy != 'select':
        return [[dim] for dim in dims.values()]
    together, always = [], grain.tie_qkv or grain.head_policy == 'select'
    for dim in dims.values():
        if dim.kind == 'qk':
            v = dims[f'{block_name(dim.stage, dim.block)}.v']
            if grain.tie_qkv:
                check_tied(dim.name, v.name, (dim.size, v.size))
            together += [[dim, v]] if always or dim.size == v.size else [[dim], [v]]
        elif dim.kind != 'v':
            together.append([dim])
    return together


def _loses_heads(dim: PrunableDim, grain: Grain) -> bool:
    """Whether it shrinks by whole heads."""
    return dim.kind in ('qk', 'v') and grain.head_policy == 'select'


def _ladder(dim: PrunableDim, grain: Grain) -> list[int]:
    """Allowed widths of a dim, ascending; the dense width is the last."""
    if dim.name in grain.fixed:
        return [dim.size]
    run = math.lcm(grain.round_to, dim.unit) * dim.groups
    step = dim.size // dim.groups if _loses_heads(dim, grain) else min(run, dim.size)
    least = max(step, grain.min_share * dim.size)
    return [w for w in range(step, dim.size, step) if w >= least] + [dim.size]


def _losses(
    dims: Sequence[PrunableDim], scores: Mapping[str, Tensor], ladder: Sequence[int], grain: Grain
) -> list[float]:
    """Score of the channels that are missing at each width; ``plan_for_target`` removes them in the same order."""
    if len(dims) > 1 and not grain.tie_qkv and not _loses_heads(dims[0], grain):  # each loses its own channels
        return [sum(both) for both in zip(*(_losses([dim], scores, ladder, grain) for dim in dims))]
    size, heads = dims[0].size, dims[0].groups
    joint = [values.double() for values in joint_scores(scores, [dim.name for dim in dims])]
    if _loses_heads(dims[0], grain):
        order = head_scores(joint, heads).argsort(stable=True)
        of_heads = sum(values.unflatten(0, (heads, -1)).sum(dim=1) for values in joint)
        lost = [0.0, *accumulate(of_heads[order].tolist())]
        return [lost[(size - width) * heads // size] for width in ladder]
    by_head = sum(joint).unflatten(0, (heads, -1))
    lost = [0.0, *accumulate(by_head.sort(dim=1).values.sum(dim=0).tolist())]  # one channel of each head
    return [lost[(size - width) // heads] for width in ladder]
