"""From a pruning job's goal and its scores to the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning import PrunePlan, plan_for_target, prunable_dims
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.importance import Scores
from upvit_mm.pruning.knobs import Grain
from upvit_mm.pruning.plan import Blocks
from upvit_mm.pruning.spending import target_for_budget
from upvit_mm.pruning.table import block_name
from upvit_mm.workflow.prune_goal import Goal
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.subject import Subject


class JobPlan:
    """Makes plans for one goal.

    Args:
        dense: the network to prune.
        goal: the target or budget.
        settings: settings of the job.
        choose: gives the blocks that stay, if the target has fewer of them; see ``JobBlocks.get``.

    Attributes:
        chooses_blocks: whether blocks are chosen; a classifier needs its head for that.
    """

    def __init__(self, dense: Subject, goal: Goal, settings: PruneSettings, choose: Callable[[], Blocks]):
        self.dense, self.goal, self.settings, self._choose = dense, goal, settings, choose
        self.chooses_blocks = isinstance(goal, ArchSpec) and goal.depths != dense.arch.depths

    @cached_property
    def blocks(self) -> Blocks | None:
        """The blocks that stay for a target of other depths, else None; all processes must ask for them together."""
        return self._choose() if self.chooses_blocks else None

    @property
    def grain(self) -> Grain:
        """Which widths a budget may choose."""
        return replace(self.settings.grain, fixed=tuple(self.dense.fixed))

    @property
    def inputs(self) -> dict:
        """The settings that decide a plan; the goal decides it too."""
        return self.settings.some(
            'head_policy', 'tie_qkv', 'round_to', 'min_share', 'non_uniform', 'window_size', 'max_rows'
        )

    @property
    def spends_by_score(self) -> bool:
        """Whether the target depends on the scores."""
        return isinstance(self.goal, Budget) and self.settings.non_uniform

    def target(self, scores: Scores | None) -> ArchSpec:
        """The architecture of the result; scores may be None if they do not decide the widths."""
        if isinstance(self.goal, PrunePlan):
            return self.goal.target_arch
        if isinstance(self.goal, ArchSpec):
            return replace(self.goal, img_size=self.dense.arch.img_size)
        s = self.settings
        assert scores is not None or not s.non_uniform, 'widths by score need scores'
        by_score = scores if s.non_uniform else None
        windows = self.dense.windows(s)
        return target_for_budget(self.dense.arch, self.goal, self.grain, self.dense.num_classes, by_score, windows)

    def make(self, scores: Scores) -> PrunePlan:
        """The plan from these scores."""
        s, arch = self.settings, self.dense.arch
        how = (s.head_policy, s.tie_qkv, self.blocks, self.dense.turned)
        return plan_for_target(arch, self.target(scores), scores, *how)

    def cut(self, scores: Scores) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Kept channels of a plan from these scores, and the runs of each dim in which it chose."""
        plan = self.make(scores)
        groups = {name: dim.groups for name, dim in prunable_dims(self.dense.arch).items()}
        if self.settings.head_policy == 'regroup':
            for i, pairs in enumerate(plan.kept_blocks):
                for (attn, _), heads in zip(pairs, plan.target_arch.num_heads[i]):
                    groups |= {f'{block_name(i, attn)}.{kind}': heads for kind in ('qk', 'v')}
        return plan.kept, groups
