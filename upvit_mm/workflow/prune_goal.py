"""The goal of a pruning job, and its settings, from a config and a command line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from mmengine.config import Config

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.arch.size import Size, size_text
from upvit_mm.models.own_backbone import own_backbone
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.budget import Budget
from upvit_mm.registry import require_families, scope_of
from upvit_mm.workflow.prune_settings import FOR_DETECTORS, PruneSettings

logger = logging.getLogger('upvit_mm')
GOALS = ('target', 'widths', 'budget', 'plan')
WIDTHS = ('depths', 'embed_dims', 'num_heads', 'qk_dims', 'v_dims', 'mlp_hidden_dims', 'qk_scales')  # --widths
Goal = ArchSpec | Budget | PrunePlan
LATENCY_SETTINGS = ('latency_device', 'latency_precision', 'latency_batch')
NOT_FOR_DETECTORS = {
    'per_class': 'pictures of a detector have several classes; give num_images',
    'window_size': "the windows are those of the config's backbone",
}


def source_of(cfg: Config) -> ArchSpec:
    """The architecture of a config's dense classifier.

    Raises:
        ValueError: a detector's config, a model without a backbone of this package, or a backbone without an arch.
    """
    if scope_of(cfg) == 'mmdet':
        raise ValueError(
            "default_scope = 'mmdet': importance is measured in a classifier; give a classifier's config, for example "
            'configs/pruning/up-pvtv2-b0_from-pvtv2-b2_in1k.py.'
        )
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    kind = backbone.get('type')
    require_families('model.backbone.type', kind)
    if backbone.get('arch') is None:
        raise ValueError(f"model.backbone.arch of {kind}: is missing; name one, as arch='pvtv2-b0'.")
    return resolve_arch(backbone.arch)


def is_detector(cfg: Config) -> bool:
    """Whether a config is of mmdet."""
    return scope_of(cfg) == 'mmdet'


def _arch_of(cfg: Config) -> ArchSpec:
    if not is_detector(cfg):
        return source_of(cfg)
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    return ArchSpec.from_dict(own_backbone(backbone, cfg.get('default_scope') or 'mmdet')['arch'])


def goal_text(goal: Goal) -> str:
    """A goal in a few words, for the record."""
    if isinstance(goal, ArchSpec):
        return f'architecture {goal.name or "of given widths"}'
    return f'budget {goal}' if isinstance(goal, Budget) else 'plan given'


def goal_and_settings(cfg: Config, given: Mapping[str, Any]) -> tuple[Goal, PruneSettings]:
    """Goal and settings: the config's ``prune = dict(...)``, overridden by ``given``.

    Args:
        cfg: config of the dense network: of a classifier (mmpretrain) or of a detector (mmdet).
        given: fields of ``PruneSettings``, and one of ``target`` (stock name or ``arch.json``), ``widths`` (fields of
            an ArchSpec that change), ``budget`` (see ``Budget.parse``) and ``plan`` (``plan.json``); other keys and
            None are ignored.

    Raises:
        ValueError: no goal or several, an unknown setting in the config, a setting or a goal that cannot be read.
    """
    chosen = dict(cfg.get('prune', {}))
    names = {field.name for field in fields(PruneSettings)}
    if unknown := sorted(set(chosen) - names - set(GOALS)):
        raise ValueError(f'prune = dict({unknown[0]}=...) of the config: unknown; known: {", ".join(sorted(names))}.')
    goals = {kind: given[kind] for kind in GOALS if given.get(kind)}
    goals = goals or {kind: chosen[kind] for kind in GOALS if kind in chosen}
    if len(goals) != 1:
        raise ValueError(f'{len(goals)} goals are given; give one: {", ".join(GOALS)}.')
    settings = {name: value for name, value in chosen.items() if name in names}
    settings |= {name: given[name] for name in names if given.get(name) is not None}
    if is_detector(cfg):
        for name, reason in NOT_FOR_DETECTORS.items():
            if name in settings:
                raise ValueError(f'{name} = {settings[name]!r}: is not for a detector; {reason}.')
        settings = FOR_DETECTORS | settings
    ((kind, value),) = goals.items()
    if kind == 'widths':
        if other := sorted(set(value) - set(WIDTHS)):
            raise ValueError(f'widths: {other[0]} cannot be pruned; known: {", ".join(WIDTHS)}.')
        goal = _arch_of(cfg).with_widths(value)
    else:
        goal = {'target': resolve_arch, 'budget': Budget.parse, 'plan': PrunePlan.load}[kind](value)
    if not (isinstance(goal, Budget) and goal.metric == 'latency'):
        for name in LATENCY_SETTINGS:
            if given.get(name) is not None:
                logger.warning(
                    '%s = %r is ignored: it is for a budget in time (latency=60%%@800x1344)', name, given[name]
                )
    return goal, PruneSettings(**settings)


def sized(goal: Goal, size: Size, of_detector: bool) -> Goal:
    """A goal whose budget has a size, if its cost depends on one.

    Args:
        goal: the goal.
        size: ``(height, width)`` in pixels of a budget without a size.
        of_detector: whether the network is a detector, whose pictures have several sizes.

    Raises:
        ValueError: a latency of a detector without a size.
    """
    if not isinstance(goal, Budget) or not goal.has_size or goal.size is not None:
        return goal
    if of_detector and goal.metric == 'latency':
        raise ValueError(
            f'budget = {str(goal)!r}: of a detector needs a size in pixels; write {goal}@{size_text(size)}.'
        )
    return replace(goal, size=size)
