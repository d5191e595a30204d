"""Checks of a pruning job before anything is scored or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from mmengine.config import Config

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.family import Family
from upvit_mm.arch.size import Windows
from upvit_mm.checkpoints import load_classifier, local_file
from upvit_mm.data.checks import check_datasets
from upvit_mm.data.datasets import PARTS
from upvit_mm.pruning import PrunePlan, plan_for_target, prunable_dims
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs
from upvit_mm.pruning.depth import all_blocks
from upvit_mm.pruning.spending import check_budget, target_for_budget
from upvit_mm.pruning.table import stage_name
from upvit_mm.registry import MODELS, is_type
from upvit_mm.workflow.prune_goal import Goal
from upvit_mm.workflow.prune_settings import PruneSettings

HEAD = "the checkpoint's head"


def check_readout(cfg: Config, family: Family) -> None:
    """Refuse a classifier that differs from ``PosteriorNet``: another network than the config's would be scored.

    Raises:
        ValueError: a setting is wrong; the message names it and its right value.
    """
    model = cfg.model
    neck, backbone = (model.get('neck') or {}).get('type'), model.backbone
    if family.reads_class_token:
        out_type = backbone.get('out_type', 'featmap')
        if out_type != 'cls_token' or neck:
            raise ValueError(
                f'model.backbone.out_type = {out_type!r}, model.neck = {neck!r}: the head of a {family.title} must '
                "read the class token here; set out_type='cls_token' and no neck."
            )
        if backbone.get('window_size'):
            raise ValueError(
                f'model.backbone.window_size = {backbone.window_size}: importance is measured with global attention; '
                'leave it out, and give the windows of your detector to the budget (--window-size).'
            )
    elif not is_type(neck, 'GlobalAveragePooling', registry=MODELS):
        raise ValueError(
            f'model.neck = {neck!r}: the head of a {family.title} must read the mean over tokens; set '
            "neck=dict(type='GlobalAveragePooling')."
        )


def check_images(cfg: Config, parts: Sequence[str], num_classes: int) -> None:
    """Refuse a config if its data of these parts are missing, or do not fit the config or the checkpoint.

    Args:
        cfg: mmpretrain config of the dense classifier; its other parts are not used here.
        parts: parts that are read, of ``'train'`` and ``'val'``.
        num_classes: outputs of the checkpoint's head; 0 = it has none.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: see ``check_datasets``.
    """
    other = {f'{part}_dataloader' for part in PARTS if part not in parts}
    read = {key: value for key, value in cfg.items() if key not in other}
    try:
        check_datasets(read, parts, {HEAD: num_classes} if num_classes else None)
    except FileNotFoundError as error:
        hint = 'Images without labels are enough: --images FOLDER --num-images N.'
        raise FileNotFoundError(f'{error} {hint}') from error


def check_training_data(cfg: Config, checkpoint: str | None) -> None:
    """Refuse a config if its training or validation data are missing, or do not fit the config or the dense weights.

    Args:
        cfg: mmpretrain config of the dense classifier.
        checkpoint: its weights; None = they are trained first.

    Raises:
        FileNotFoundError: a folder or the checkpoint is missing.
        ValueError: a part is missing; see ``check_datasets`` and ``load_classifier``.
    """
    for part in ('train', 'val'):
        if not cfg.get(f'{part}_dataloader'):
            raise ValueError(f'the config has no {part}_dataloader, which every training here needs; give one.')
    head = load_classifier(local_file(checkpoint)).get('head.fc.bias', ()) if checkpoint else ()
    check_datasets(cfg, ('train', 'val'), {HEAD: len(head)} if len(head) else None)


def check_all_run(source: ArchSpec, used: Sequence[int] | None) -> None:
    """Refuse a budget for a backbone whose last blocks no output needs: it would be spent on them.

    Args:
        source: the dense architecture.
        used: for each stage the number of its blocks that run; None = all.

    Raises:
        ValueError: some never run.
    """
    if used is not None and (idle := sum(source.depths) - sum(used)):
        raise ValueError(
            f'model.backbone.out_indices: the last {idle} of {sum(source.depths)} blocks never run, and a budget would '
            'be spent on them; give the widths instead (--target arch.json or --widths).'
        )


def check_goal(
    goal: Goal,
    source: ArchSpec,
    settings: PruneSettings,
    num_classes: int,
    fixed: Mapping[str, str] = MappingProxyType({}),
    windows: Windows | None = None,
) -> None:
    """Before training and scoring, refuse a goal that no scores can reach.

    Args:
        goal: what to reach.
        source: the dense architecture.
        settings: how.
        num_classes: outputs of the head, which is counted too; 0 = none.
        fixed: names of dims that keep their width, and ``'depths'`` if all blocks stay, with the reason.
        windows: windows of attention; None = those of the settings.

    Raises:
        ValueError: a plan or target that does not fit the source, or a budget that cannot be met.
    """
    windows = settings.windows if windows is None else windows
    count_macs(source, (source.img_size,) * 2, num_classes, windows)  # refuses windows in a PVTv2
    if isinstance(goal, PrunePlan):
        if replace(goal.source_arch, name=source.name) != source:
            raise ValueError('the plan belongs to another source architecture than the one of the config.')
        _check_fixed(goal.target_arch, source, fixed)
        return
    if isinstance(goal, Budget):
        grain = replace(settings.grain, fixed=tuple(fixed))
        if settings.non_uniform:
            check_budget(source, goal, grain, num_classes, windows)
            return
        goal = target_for_budget(source, goal, grain, num_classes, windows=windows)
    if goal.family != source.family:
        raise ValueError(f'target family = {goal.family!r}: the source is a {source.family}.')
    if any(depth > full for depth, full in zip(goal.depths, source.depths)):
        raise ValueError(
            f'target depths = {list(goal.depths)}: pruning cannot deepen the source, which has {list(source.depths)}.'
        )
    _check_fixed(goal, source, fixed)
    if goal.depths == source.depths or source.is_regular:  # then all choices of blocks have the same cost
        scores = {dim.name: torch.zeros(dim.size) for dim in prunable_dims(source).values()}
        blocks = tuple(map(all_blocks, goal.depths))
        plan_for_target(source, goal, scores, settings.head_policy, settings.tie_qkv, blocks)


def _check_fixed(target: ArchSpec, source: ArchSpec, fixed: Mapping[str, str]) -> None:
    """Refuse a target that narrows what must keep its width, or removes blocks that must stay."""
    if target.depths != source.depths and (reason := fixed.get('depths')):
        raise ValueError(f'target depths = {list(target.depths)}: must stay {list(source.depths)}, because {reason}.')
    for i, (width, full) in enumerate(zip(target.embed_dims, source.embed_dims)):
        if width < full and (reason := fixed.get(f'{stage_name(i)}.embed')):
            raise ValueError(f'target embed_dims[{i}] = {width}: must stay {full} in this detector, because {reason}.')
