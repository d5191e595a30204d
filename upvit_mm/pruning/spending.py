"""How a budget is spent: from the allowed cost of a network to its widths."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import GLOBAL, Windows
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import Cost, total
from upvit_mm.pruning.dims import prunable_dims
from upvit_mm.pruning.knobs import Grain, Knob, knobs_of, set_share, widths_at
from upvit_mm.pruning.table import block_name


class Step(NamedTuple):
    """A move of a knob.

    Attributes:
        score: what it loses downwards, or gains upwards.
        cost: the cost that it saves or adds.
        to: index of the width that it leads to.
    """

    score: float
    cost: int
    to: int

    @property
    def price(self) -> float:
        """Score per unit of cost."""
        return self.score / self.cost if self.cost > 0 else math.inf


def target_for_budget(
    source: ArchSpec,
    budget: Budget,
    grain: Grain,
    num_classes: int = 0,
    scores: Mapping[str, Tensor] | None = None,
    windows: Windows = GLOBAL,
) -> ArchSpec:
    """The widths for a budget: their cost is at most 1 % (latency: 3 %) below it and never above it.

    Args:
        source: the dense architecture.
        budget: the allowed cost of the result.
        grain: which widths there are.
        num_classes: outputs of the head, which is counted too.
        scores: by dim name, higher = keep. When given, each block gets its own widths: starting from the dense network,
            the channels with the highest cost for their score are removed first. None narrows all widths by the same
            share, so that the blocks of a stage stay equal.
        windows: windows of the detector's attention.

    Raises:
        ValueError: the budget is above the cost of the dense network or below that of the narrowest one, or no
            combination of widths meets it; the message lists what can be reached.
    """
    knobs = _knobs(source, budget, grain, scores)
    spending = _Spending(budget, budget.terms(source, num_classes, windows), knobs)
    if scores is None:
        spending.narrow_alike()
    else:
        spending.narrow_by_score()
    spending.check_met()
    return _arch_of(source, knobs, grain, f'{source.name or source.family}@{budget}')


def check_budget(
    source: ArchSpec, budget: Budget, grain: Grain, num_classes: int = 0, windows: Windows = GLOBAL
) -> None:
    """Before scoring, refuse a budget that no widths of single blocks can meet.

    Raises:
        ValueError: as ``target_for_budget``, without the cases that depend on the scores.
    """
    scores = {dim.name: torch.zeros(dim.size) for dim in prunable_dims(source).values()}
    _Spending(budget, budget.terms(source, num_classes, windows), _knobs(source, budget, grain, scores))


def _knobs(source: ArchSpec, budget: Budget, grain: Grain, scores: Mapping[str, Tensor] | None) -> list[Knob]:
    return knobs_of(source, replace(grain, pair_qkv=budget.metric == 'latency'), scores)


def narrowest(source: ArchSpec, grain: Grain) -> ArchSpec:
    """The network with the smallest widths that a grain allows."""
    knobs = knobs_of(source, grain, None)
    set_share(knobs, 0.0)
    return _arch_of(source, knobs, grain, source.name)


class _Spending:
    """Moves knobs until a budget is met.

    Raises:
        ValueError: the budget is above the cost of the dense network, or below that of the narrowest one.
    """

    def __init__(self, budget: Budget, terms: Sequence[Cost], knobs: Sequence[Knob]):
        self.budget, self.terms, self.knobs = budget, terms, knobs
        self.terms_of: dict[str, list[Cost]] = {}
        for term in terms:
            for name in set(term.dims):
                self.terms_of.setdefault(name, []).append(term)
        least, dense = self._cost_at(0.0), self._cost_at(1.0)  # this sets all knobs to the dense widths
        self.limit = budget.amount * (dense if budget.relative else 1)
        if self.limit > dense:
            raise ValueError(f'budget {budget} is above what the dense network costs, {budget.text(dense)}.')
        if least > self.limit:
            raise ValueError(
                f'budget {budget} = {budget.text(self.limit)} is out of reach: the narrowest network costs '
                f'{budget.text(least, False)}, the dense one {budget.text(dense, False)}; lower min_share or round_to, '
                'or remove blocks first.'
            )

    def cost(self) -> int:
        """Cost of the current widths of the knobs."""
        return total(self.terms, widths_at(self.knobs))

    def narrow_alike(self) -> None:
        """One share for all widths; the rest of the budget goes to single knobs, the narrowest first."""
        shares = sorted({width / knob.widths[-1] for knob in self.knobs for width in knob.widths})
        fitting = bisect.bisect_right(shares, self.limit, key=lambda share: self._cost_at(share))
        set_share(self.knobs, shares[max(fitting - 1, 0)])
        while True:
            fitting = [k for k in self.knobs if k.step + 1 < len(k.widths) and self._fits_up(k)]
            if not fitting:
                return
            min(fitting, key=lambda k: k.widths[k.step + 1] / k.widths[-1]).step += 1

    def narrow_by_score(self) -> None:
        """Take the step that saves most cost for the score it loses first; at the end, spend the rest on steps up."""
        self._give_back(self._narrow())

    def _narrow(self) -> int:
        """Step down until the limit holds; returns the cost.

        Invariant: ``widths`` are the current widths of the knobs, and ``cost`` is their cost. Each step lowers the
        cost, and the lowest widths are within the limit. So there is always a step until the limit holds.
        """
        knobs, widths, cost = self.knobs, widths_at(self.knobs), self.cost()
        touched = {k.dims: {n for d in k.dims for t in self.terms_of.get(d, ()) for n in t.dims} for k in knobs}
        steps: dict[tuple[str, ...], list[Step]] = {}
        while cost > self.limit:
            # What a step saves depends only on the widths in the terms of its own dims. So it is cached until one of
            # these widths changes.
            for knob in knobs:
                if knob.dims not in steps:
                    steps[knob.dims] = [
                        Step(knob.lost[low] - knob.lost[knob.step], self._change(knob, knob.step, low, widths), low)
                        for low in self._below(knob)
                    ]
            # A large step at the end would leave more than the tolerance unspent. So steps that stay above `floor` are
            # taken first, whatever their price. Times have large steps that are worth it.
            floor = (1 - self.budget.tolerance) * self.limit if self.budget.metric != 'latency' else 0
            best, step = min(
                ((knob, step) for knob in knobs for step in steps[knob.dims]),
                key=lambda move: (cost - move[1].cost < floor, move[1].price),
            )
            cost -= step.cost
            best.step = step.to
            widths |= best.at(best.step)
            steps = {dims: moves for dims, moves in steps.items() if not touched[best.dims] & set(dims)}
        return cost

    def _below(self, knob: Knob) -> list[int]:
        """Steps that a knob may move down to: the next one; of times, which are flat in places, further ones too."""
        if self.budget.metric != 'latency':
            return [knob.step - 1] if knob.step else []
        return [knob.step - 2**k for k in range(knob.step.bit_length()) if knob.step >= 2**k]

    def _give_back(self, cost: int) -> None:
        """Step up while a step fits in the limit; take the step that gains most score for its cost first."""
        knobs, widths = self.knobs, widths_at(self.knobs)
        while True:
            steps = {}
            for index, knob in enumerate(knobs):
                if knob.step + 1 < len(knob.widths):
                    added = self._change(knob, knob.step + 1, knob.step, widths)
                    if cost + added <= self.limit:
                        steps[index] = Step(knob.lost[knob.step] - knob.lost[knob.step + 1], added, knob.step + 1)
            if not steps:
                return
            best = max(steps, key=lambda index: steps[index].price)
            knobs[best].step = steps[best].to
            cost += steps[best].cost
            widths |= knobs[best].at(knobs[best].step)

    def check_met(self) -> None:
        """Refuse a result that leaves more than the tolerance unspent; of times a measurement decides."""
        cost = self.cost()
        if self.budget.metric == 'latency' or cost >= (1 - self.budget.tolerance) * self.limit:
            return
        steps, widths = [], widths_at(self.knobs)
        for knob in self.knobs:
            if knob.step + 1 < len(knob.widths):
                above = cost + self._change(knob, knob.step + 1, knob.step, widths)
                steps.append(f'{self.budget.text(above, False)} with {knob.dims[0]} {knob.widths[knob.step + 1]} wide')
        raise ValueError(
            f'budget {self.budget} = {self.budget.text(self.limit)} is not met within {self.budget.tolerance:.0%}. '
            f'Reachable: {self.budget.text(cost, False)} below it; above it {"; ".join(sorted(steps)[:5])}. Name one '
            'of these, or lower round_to.'
        )

    def _change(self, knob: Knob, high: int, low: int, widths: dict[str, int]) -> int:
        """The extra cost of a network with one knob at a higher step and the others at ``widths``."""
        terms = {id(t): t for name in knob.dims for t in self.terms_of.get(name, ())}.values()
        return total(terms, widths | knob.at(high)) - total(terms, widths | knob.at(low))

    def _fits_up(self, knob: Knob) -> bool:
        return self.cost() + self._change(knob, knob.step + 1, knob.step, widths_at(self.knobs)) <= self.limit

    def _cost_at(self, share: float) -> int:
        set_share(self.knobs, share)
        return self.cost()


def _arch_of(source: ArchSpec, knobs: Sequence[Knob], grain: Grain, name: str) -> ArchSpec:
    widths = widths_at(knobs)

    def of_blocks(kind: str) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(widths[f'{block_name(i, j)}.{kind}'] for j in range(depth)) for i, depth in enumerate(source.depths)
        )

    heads = source.num_heads
    if grain.head_policy == 'select':
        runs = zip(of_blocks('qk'), source.qk_dims, source.num_heads)
        heads = tuple(tuple(w * h // full for w, full, h in zip(*stage)) for stage in runs)
    return replace(
        source,
        name=name,
        embed_dims=tuple(widths[f'stages.{i}.embed'] for i in range(source.num_stages)),
        num_heads=heads,
        qk_dims=of_blocks('qk'),
        v_dims=of_blocks('v'),
        mlp_hidden_dims=of_blocks('mlp_hidden'),
    )
