"""Settings of the pruning job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmengine.config import Config

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.budget import Budget

GOALS = ('target', 'widths', 'budget', 'plan')
METHODS = ('fisher', 'kl', 'hybrid', 'taylor', 'magnitude', 'random')
Goal = ArchSpec | Budget | PrunePlan


@dataclass(frozen=True)
class Settings:
    """How to prune.

    Attributes:
        method: of scoring, one of ``METHODS``.
        draws: backward passes an image (fisher, hybrid).
        near_share: share of each dim (or head) around the cut that ``hybrid`` scores exactly.
        per_class: images of every class in the proxy set.
        images: plain folder of images to use instead of the config's data.
        num_images: size of the proxy set when it comes from ``images``.
        head_policy, tie_qkv: see ``plan_for_target``.
        round_to, min_share: see ``Grain``; for budgets.
        non_uniform: whether a budget gives each block its own widths, by score for cost.
        window_size: of the detector's attention (DeiT), for budgets in MACs; 0 = global.
        compensate: re-solve the linear layers after slicing.
        ridge: see ``compensate``.
        seed: of the proxy set and of what is random in the method.
        eval_images: held-out images on which the result is judged, at most; 0 = it is not judged.
        batch_size: images at once.
        max_rows: images x candidates at once (kl, hybrid); bounds the memory.
        device: ``'cpu'`` or ``'cuda'`` (``'cuda:3'``).
    """

    method: str = 'fisher'
    draws: int = 4
    near_share: float = 0.2
    per_class: int = 5
    images: str | None = None
    num_images: int = 1000
    head_policy: str = 'within'
    tie_qkv: bool = False
    round_to: int = 8
    min_share: float = 0.1
    non_uniform: bool = False
    window_size: int = 0
    compensate: bool = False
    ridge: float = 1e-2
    seed: int = 0
    eval_images: int = 1000
    batch_size: int = 32
    max_rows: int = 256
    device: str = 'cpu'

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f'method = {self.method!r}: must be one of {", ".join(METHODS)}.')
        for name in ('draws', 'per_class', 'num_images', 'batch_size', 'max_rows'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} = {getattr(self, name)}: must be at least 1.')
        if not 0 < self.near_share <= 1:
            raise ValueError(f'near_share = {self.near_share}: must be above 0 and at most 1.')

    def some(self, *names: str) -> dict:
        """These settings, as plain data."""
        return {name: getattr(self, name) for name in names}


def goal_text(goal: Goal) -> str:
    """A goal in a few words, for the record."""
    if isinstance(goal, ArchSpec):
        return f'architecture {goal.name or "of given widths"}'
    return f'budget {goal}' if isinstance(goal, Budget) else 'plan given'


def goal_and_settings(cfg: Config, given: Mapping[str, Any]) -> tuple[Goal, Settings]:
    """What to reach and how: the config's ``prune = dict(...)``, overridden by what was given.

    Args:
        cfg: mmpretrain config of the dense classifier.
        given: fields of ``Settings``, and one of ``target`` (stock name or ``arch.json``), ``widths`` (fields of an
            ArchSpec that change), ``budget`` (see ``Budget.parse``) and ``plan`` (``plan.json``); other keys and None
            are ignored.

    Raises:
        ValueError: no goal or several, an unknown setting in the config, or a goal that cannot be read.
    """
    chosen = dict(cfg.get('prune', {}))
    names = {field.name for field in fields(Settings)}
    if unknown := sorted(set(chosen) - names - set(GOALS)):
        raise ValueError(f'prune = dict({unknown[0]}=...) of the config: unknown; known: {", ".join(sorted(names))}.')
    goals = {kind: given[kind] for kind in GOALS if given.get(kind)}
    goals = goals or {kind: chosen[kind] for kind in GOALS if kind in chosen}
    if len(goals) != 1:
        raise ValueError(f'{len(goals)} goals are named; name one: {", ".join(GOALS)}.')
    settings = {name: value for name, value in chosen.items() if name in names}
    settings |= {name: given[name] for name in names if given.get(name) is not None}
    ((kind, value),) = goals.items()
    if kind == 'widths':
        goal = resolve_arch(cfg.model.backbone.arch).with_widths(value)
    else:
        goal = {'target': resolve_arch, 'budget': Budget.parse, 'plan': PrunePlan.load}[kind](value)
    return goal, Settings(**settings)
