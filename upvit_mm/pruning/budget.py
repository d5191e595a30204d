"""From a budget to the widths that meet it: what a network may cost, and how it is spent."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import GLOBAL, Size, Windows
from upvit_mm.pruning.costs import Term, mac_terms, param_terms, total
from upvit_mm.pruning.dims import prunable_dims
from upvit_mm.pruning.knobs import Grain, Knob, knobs_of, set_share, widths_at
from upvit_mm.pruning.table import block_name

TOLERANCE = 0.01  # how far below its budget a network may stay
UNITS = {'': 1, 'K': 1e3, 'M': 1e6, 'G': 1e9}
FORM = re.compile(
    r'(?P<metric>macs|params)=(?P<number>\d+(\.\d+)?)(?P<unit>%|[KMG]?)(@(?P<height>\d+)x(?P<width>\d+))?',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Budget:
    """What a pruned network may cost, backbone and head.

    Attributes:
        metric: ``'macs'`` of one image, or ``'params'``.
        amount: how many, or a share of the dense network's when ``relative``.
        relative: whether ``amount`` is a share.
        size: ``(height, width)`` of the image in pixels (macs); None = the network's own.
    """

    metric: str
    amount: float
    relative: bool = False
    size: Size | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``macs=50%@800x1333``, ``macs=1.2G``, ``params=3.7M`` or ``params=40%``.

        Raises:
            ValueError: another form, nothing left, or a share above 100 %.
        """
        match = FORM.fullmatch(text)
        if match is None or (match['metric'].lower() == 'params' and match['height']):
            raise ValueError(
                f'budget = {text!r}: must look like macs=50%@800x1333, macs=1.2G@224x224, params=3.7M or params=40%.'
            )
        relative = match['unit'] == '%'
        amount = float(match['number']) * (0.01 if relative else UNITS[match['unit'].upper()])
        if not amount or (relative and amount > 1):
            raise ValueError(f'budget = {text!r}: must be above 0, and a share at most 100 %.')
        size = (int(match['height']), int(match['width'])) if match['height'] else None
        return cls(match['metric'].lower(), amount, relative, size)

    def terms(self, arch: ArchSpec, num_classes: int, windows: Windows = GLOBAL) -> list[Term]:
        """What is counted, see ``mac_terms`` and ``param_terms``."""
        if self.metric == 'params':
            return param_terms(arch, num_classes)
        return mac_terms(arch, self.size_for(arch), num_classes, windows)

    def size_for(self, arch: ArchSpec) -> Size:
        """``(height, width)`` of the image at which the multiply-accumulates of a network count."""
        return self.size or (arch.img_size,) * 2

    def __str__(self) -> str:
        if self.relative:
            amount = f'{100 * self.amount:.6g}%'
        else:
            unit = max((u for u in UNITS if UNITS[u] <= self.amount), key=UNITS.get, default='')
            amount = f'{self.amount / UNITS[unit]:.6g}{unit}'
        at = f'@{self.size[0]}x{self.size[1]}' if self.size else ''
        return f'{self.metric}={amount}{at}'


def target_for_budget(
    source: ArchSpec,
    budget: Budget,
    grain: Grain,
    num_classes: int = 0,
    scores: Mapping[str, Tensor] | None = None,
    windows: Windows = GLOBAL,
) -> ArchSpec:
    """The widths that spend a budget, within 1 % from below.

    Args:
        source: the dense architecture.
        budget: what the result may cost.
        grain: which widths there are.
        num_classes: outputs of the head, which counts.
        scores: by dim name, higher = keep. When given, each block gets its own widths: from the dense network on, the
            channels that cost most for the score they carry go first. None narrows everything alike, so that the
            blocks of a stage stay equal and the network regular.
        windows: of the detector's attention.

    Raises:
        ValueError: the budget is above what the dense network costs, below what the narrowest one does, or no
            combination of widths meets it; the message lists what is reachable.
    """
    knobs = knobs_of(source, grain, scores)
    spending = _Spending(budget, budget.terms(source, num_classes, windows), knobs)
    if scores is None:
        spending.narrow_alike(knobs)
    else:
        spending.narrow_by_score(knobs)
    spending.check_met(knobs)
    return _arch_of(source, knobs, grain, f'{source.name or source.family}@{budget}')


def check_budget(
    source: ArchSpec, budget: Budget, grain: Grain, num_classes: int = 0, windows: Windows = GLOBAL
) -> None:
    """Refuse, before anything is scored, a budget that no widths of single blocks can meet.

    Raises:
        ValueError: as ``target_for_budget``, but for what depends on the scores.
    """
    scores = {dim.name: torch.zeros(dim.size) for dim in prunable_dims(source).values()}
    _Spending(budget, budget.terms(source, num_classes, windows), knobs_of(source, grain, scores))


def narrowest(source: ArchSpec, grain: Grain) -> ArchSpec:
    """The network with the least widths that a grain allows."""
    knobs = knobs_of(source, grain, None)
    set_share(knobs, 0.0)
    return _arch_of(source, knobs, grain, source.name)


class _Spending:
    """Moves knobs until a budget is met."""

    def __init__(self, budget: Budget, terms: Sequence[Term], knobs: Sequence[Knob]):
        self.budget, self.terms = budget, terms
        self.terms_of: dict[str, list[Term]] = {}
        for term in terms:
            for name in set(term.dims):
                self.terms_of.setdefault(name, []).append(term)
        least, dense = self._cost_at(knobs, 0.0), self._cost_at(knobs, 1.0)
        self.limit = budget.amount * (dense if budget.relative else 1)
        if self.limit > dense:
            raise ValueError(f'budget {budget} is above what the dense network costs, {dense:,} {budget.metric}.')
        if least > self.limit:
            raise ValueError(
                f'budget {budget} = {int(self.limit):,} {budget.metric} is out of reach: the narrowest network costs '
                f'{least:,}, the dense one {dense:,}; lower min_share or round_to, or remove blocks first.'
            )

    def cost(self, knobs: Sequence[Knob]) -> int:
        return total(self.terms, widths_at(knobs))

    def narrow_alike(self, knobs: list[Knob]) -> None:
        """One share for all widths; what is left goes to single knobs, the narrowest first."""
        shares = sorted({width / knob.widths[-1] for knob in knobs for width in knob.widths})
        fitting = bisect.bisect_right(shares, self.limit, key=lambda share: self._cost_at(knobs, share))
        set_share(knobs, shares[max(fitting - 1, 0)])
        while True:
            fitting = [k for k in knobs if k.step + 1 < len(k.widths) and self._fits_up(knobs, k)]
            if not fitting:
                return
            min(fitting, key=lambda k: k.widths[k.step + 1] / k.widths[-1]).step += 1

    def narrow_by_score(self, knobs: list[Knob]) -> None:
        """The step that saves most for the score it loses goes first; at last, what is left over is given back."""
        widths, cost = widths_at(knobs), self.cost(knobs)
        touched = {k.dims: {n for d in k.dims for t in self.terms_of.get(d, ()) for n in t.dims} for k in knobs}
        steps: dict[tuple, tuple[float, int]] = {}
        while cost > self.limit:
            for knob in knobs:
                if knob.dims not in steps and knob.step > 0:
                    saved = self._change(knob, knob.step, knob.step - 1, widths)
                    steps[knob.dims] = (knob.lost[knob.step - 1] - knob.lost[knob.step]) / saved, saved
            # a large step at the end would leave more than the tolerance unspent: small ones first, if there are any
            floor = (1 - TOLERANCE) * self.limit
            best = min(
                (k for k in knobs if k.step > 0),
                key=lambda k: (cost - steps[k.dims][1] < floor, steps[k.dims][0]),
            )
            cost -= steps[best.dims][1]
            best.step -= 1
            widths |= best.at(best.step)
            steps = {dims: step for dims, step in steps.items() if not touched[best.dims] & set(dims)}
        while True:
            gains = {}
            for index, knob in enumerate(knobs):
                if knob.step + 1 < len(knob.widths):
                    added = self._change(knob, knob.step + 1, knob.step, widths)
                    if cost + added <= self.limit:
                        gains[index] = (knob.lost[knob.step] - knob.lost[knob.step + 1]) / added, added
            if not gains:
                return
            best = max(gains, key=lambda index: gains[index][0])
            knobs[best].step += 1
            cost += gains[best][1]
            widths |= knobs[best].at(knobs[best].step)

    def check_met(self, knobs: Sequence[Knob]) -> None:
        cost = self.cost(knobs)
        if cost >= (1 - TOLERANCE) * self.limit:
            return
        steps = []
        for knob in knobs:
            if knob.step + 1 < len(knob.widths):
                above = cost + self._change(knob, knob.step + 1, knob.step, widths_at(knobs))
                steps.append(f'{above:,} with {knob.dims[0]} {knob.widths[knob.step + 1]} wide')
        raise ValueError(
            f'budget {self.budget} = {int(self.limit):,} {self.budget.metric} is not met within {TOLERANCE:.0%}. '
            f'Reachable: {cost:,} below it; above it {"; ".join(sorted(steps)[:5])}. Name one of '
            'these, or lower round_to.'
        )

    def _change(self, knob: Knob, high: int, low: int, widths: dict[str, int]) -> int:
        terms = {id(t): t for name in knob.dims for t in self.terms_of.get(name, ())}.values()
        return total(terms, widths | knob.at(high)) - total(terms, widths | knob.at(low))

    def _fits_up(self, knobs: Sequence[Knob], knob: Knob) -> bool:
        return self.cost(knobs) + self._change(knob, knob.step + 1, knob.step, widths_at(knobs)) <= self.limit

    def _cost_at(self, knobs: Sequence[Knob], share: float) -> int:
        set_share(knobs, share)
        return self.cost(knobs)


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
