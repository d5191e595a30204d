"""The ImageNet configs: their goals can be reached, and their docstrings say how they are run."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from upvit_mm.arch import ArchSpec, get_arch
from upvit_mm.pruning import plan_for_target
from upvit_mm.pruning.baselines import random_scores
from upvit_mm.pruning.depth import all_blocks
from upvit_mm.workflow.prune_goal import goal_and_settings

CONFIGS = Path(__file__).parents[2] / 'configs'
PRUNING = sorted((CONFIGS / 'pruning').glob('*.py'))


@pytest.mark.parametrize('path', PRUNING, ids=lambda p: p.stem)
def test_pruning_config(path):
    cfg = Config.fromfile(path)
    source = ArchSpec.from_dict(cfg.arch)
    goal, settings = goal_and_settings(cfg, {})
    assert path.stem == f'up-{goal.name}_from-{source.name}_in1k'
    assert source == get_arch(source.name)
    assert goal == get_arch(goal.name)
    assert (settings.method, settings.per_class, settings.compensate) == ('fisher', 5, True)
    assert cfg.model.head.in_channels == source.embed_dims[-1]
    assert cfg.train_dataloader.dataset.data_root == 'data/imagenet'
    # any blocks will do here; which ones is a matter of scores
    blocks = [all_blocks(depth)[: goal.depths[i]] for i, depth in enumerate(source.depths)]
    plan = plan_for_target(source, goal, random_scores(source, 0), settings.head_policy, settings.tie_qkv, blocks)
    assert plan.target_arch == goal
    text = path.read_text()
    assert f'tools/prune.py configs/pruning/{path.name}' in text
    assert '(paper)' in text or 'No published figure' in text


def test_the_chain_of_pvtv2(tmp_path):
    """B2 to B1 loses blocks only, B1 to B0 widths only."""
    names = {path.stem: Config.fromfile(path) for path in PRUNING}
    assert len(names) == 7
    b2, b1, b0 = (get_arch(f'pvtv2-b{k}') for k in (2, 1, 0))
    assert b2.embed_dims == b1.embed_dims
    assert b1.depths == b0.depths
