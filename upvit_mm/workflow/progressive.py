"""Prune and distil in stages: each stage prunes the result of the one before and learns from the dense network."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from upvit_mm.arch import ArchSpec, resolve_arch
from upvit_mm.checkpoints import load_classifier, local_file, save_checkpoint
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs, count_params, total, widths_of
from upvit_mm.pruning.spending import narrowest, target_for_budget
from upvit_mm.workflow.finetune import (
    balanced_subset,
    check_dense_config,
    classifier,
    taught,
    training,
    without_teacher,
)
from upvit_mm.workflow.lesson import Lesson
from upvit_mm.workflow.prune import Outcome, prune
from upvit_mm.workflow.prune_checks import check_training_data
from upvit_mm.workflow.prune_goal import Goal
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.record import Say
from upvit_mm.workflow.trainings import Training, train_all

SLACK = 0.99  # factor that lowers an intermediate budget until widths can meet it


@dataclass(frozen=True)
class Schedule:
    """The schedule of the stages.

    Attributes:
        stages: number of stages; each prunes and then distils.
        epochs: sum over all stages.
        lesson: what every stage learns from the dense network.
        lr: highest learning rate of every stage; None = the config's.
        seed: seed of the trainings.
        train_images: size of the class-balanced subset of the training images that is used; None = all.

    Raises:
        ValueError: a setting that makes no sense.
    """

    stages: int
    epochs: int
    lesson: Lesson = field(default_factory=Lesson)
    lr: float | None = None
    seed: int = 0
    train_images: int | None = None

    def __post_init__(self):
        for name in ('stages', 'lr', 'train_images'):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f'{name} = {value}: must be above 0.')
        if self.epochs < self.stages:
            raise ValueError(f'epochs = {self.epochs}: {self.stages} stages need at least one each.')

    def epochs_of(self, stage: int) -> int:
        """Epochs of a stage, counted from 1; if they cannot be equal, later stages have more."""
        return self.epochs * stage // self.stages - self.epochs * (stage - 1) // self.stages


class Progressive:
    """Run the stages and write the results; finished work is not repeated.

    Args:
        cfg: mmpretrain config of the dense classifier, or a recipe in which it is the teacher.
        checkpoint: the dense network's weights.
        goal: a budget; a relative one is a share of the dense network.
        settings: how every stage prunes.
        schedule: number of stages, epochs and so on.
        work_dir: gets ``arch.json``, ``finetuned.pth``, ``progressive.md``, ``progressive.json``, and for each stage
            ``stageK/pruning`` and ``stageK/training``.
        say: called with each line of progress.

    Raises:
        FileNotFoundError: the checkpoint or data are missing.
        ValueError: config, checkpoint, goal or data do not fit; the message says which and why.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        goal: Goal,
        settings: PruneSettings,
        schedule: Schedule,
        work_dir: Path,
        say: Say = print,
    ):
        init_default_scope('mmpretrain')
        cfg = without_teacher(cfg)
        check_dense_config(cfg)
        if not isinstance(goal, Budget):
            raise ValueError('a progressive schedule needs a budget as its goal, which it can approach in steps.')
        check_training_data(cfg, checkpoint)
        if schedule.train_images:
            cfg = balanced_subset(cfg, schedule.train_images, settings.seed)
        self.cfg, self.goal, self.settings, self.schedule = cfg, goal, settings, schedule
        self.dense, self.work_dir, self.say = local_file(checkpoint).absolute(), Path(work_dir).absolute(), say
        self.source = resolve_arch(cfg.model.backbone.arch)
        self.classes = cfg.model.head.num_classes
        self.lr = schedule.lr or cfg.optim_wrapper.optimizer.lr
        self.budgets = stage_budgets(self.source, goal, schedule.stages, settings, self.classes)

    def run(self, **notes: Any) -> dict[str, Any]:
        """Run all stages; returns the content of ``progressive.json``, including ``notes``."""
        arch, checkpoint, plans, rows = self.source, self.dense, [], []
        for stage, budget in enumerate(self.budgets, 1):
            epochs, folder = self.schedule.epochs_of(stage), self.work_dir / f'stage{stage}'
            self.say(f'stage {stage}/{self.schedule.stages}: {budget}, then {epochs} epochs')
            cfg = copy.deepcopy(self.cfg)
            cfg.model = classifier(self.cfg, arch)
            outcome = prune(cfg, str(checkpoint), budget, folder / 'pruning', self.settings)
            plans.append(folder / 'pruning/plan.json')
            distillation = self._training(stage, outcome.plan.target_arch, plans)
            train_all([distillation], say=self.say)
            # otherwise the name would collect the names of all budgets
            arch, checkpoint = replace(outcome.plan.target_arch, name=self.source.name), distillation.checkpoint
            if not rows:
                rows.append({'stage': 0, **self._costs(self.source), 'top1': _top1(outcome, 'dense')})
            curve = distillation.record()['top1']
            figures = {'sliced': _top1(outcome, 'sliced'), 'compensated': _top1(outcome, 'compensated')}
            rows.append(
                {'stage': stage, 'budget': str(budget), 'epochs': epochs, **self._costs(arch), **figures}
                | {'top1': curve[-1], 'curve': curve}
            )
        return self._write(arch, checkpoint, rows, notes)

    # ---------------------------------------------------------------------- parts

    def _training(self, stage: int, arch: ArchSpec, plans: Sequence[Path]) -> Training:
        folder, schedule = self.work_dir / f'stage{stage}', self.schedule
        sliced = folder / 'pruning/pruned.pth'
        model = taught(classifier(self.cfg, arch, sliced), self.cfg, self.dense, schedule.lesson, plans)
        cfg = training(self.cfg, model, schedule.epochs_of(stage), schedule.seed, self.lr)
        return Training(f'stage {stage}', folder / 'training', cfg, (sliced, self.dense, *plans))

    def _costs(self, arch: ArchSpec) -> dict[str, int]:
        macs = count_macs(arch, self.goal.size_for(arch), self.classes, self.settings.windows)
        return {'macs': macs, 'params': count_params(arch, self.classes)}

    def _write(self, arch: ArchSpec, checkpoint: Path, rows: list[dict], notes: dict[str, Any]) -> dict[str, Any]:
        arch = replace(arch, name=f'{self.source.name or self.source.family}@{self.goal}')
        origin = {'goal': f'budget {self.goal}', 'checkpoint': str(self.dense), 'sha256': sha256_of(self.dense)}
        content = {
            **notes,
            **origin,
            'schedule': asdict(self.schedule) | {'lr': self.lr},
            'settings': asdict(self.settings),
            'stages': rows,
        }
        arch.save_json(self.work_dir / 'arch.json')
        meta = {'tool': 'prune_progressive', 'arch': arch.to_dict(), **content}
        save_checkpoint(self.work_dir / 'finetuned.pth', load_classifier(checkpoint), **meta)
        write_text_atomically(self.work_dir / 'progressive.md', as_markdown(content))
        write_text_atomically(self.work_dir / 'progressive.json', json.dumps(content, indent=2) + '\n')
        return content


def stage_budgets(
    source: ArchSpec, goal: Budget, stages: int, settings: PruneSettings, num_classes: int
) -> list[Budget]:
    """Budgets in absolute numbers; each is the same share of the one before, and the last is the goal.

    If all blocks shrink alike, widths are tried at once, and intermediate budgets that no widths meet are lowered a
    little. If scores decide the widths of each block, the steps are small enough that no budget is below the cost of
    the narrowest network of its stage.

    Raises:
        ValueError: the goal cannot be met.
    """
    windows = settings.windows
    dense = total(goal.terms(source, num_classes, windows), widths_of(source))
    share = goal.amount if goal.relative else goal.amount / dense
    budgets = [replace(goal, amount=dense * share ** (k / stages), relative=False) for k in range(1, stages + 1)]
    arch, grain = source, settings.grain
    if settings.non_uniform:
        for stage, budget in enumerate(budgets, 1):
            arch = narrowest(arch, grain)
            least = total(goal.terms(arch, num_classes, windows), widths_of(arch))
            if least > budget.amount:
                raise ValueError(
                    f'budget {goal} in {stages} stages: stage {stage} of them would have {int(budget.amount):,} '
                    f'{goal.metric}, its narrowest network costs {least:,}; lower min_share or round_to, or take '
                    'other stages.'
                )
        return budgets
    for k, floor in enumerate([budget.amount for budget in budgets[1:]] + [budgets[-1].amount]):
        while True:
            try:
                arch = target_for_budget(arch, budgets[k], grain, num_classes, windows=windows)
                break
            except ValueError:
                lower = budgets[k].amount * SLACK
                if lower <= floor:
                    raise
                budgets[k] = replace(budgets[k], amount=lower)
    return budgets


def as_markdown(content: dict[str, Any]) -> str:
    """A row for each stage, and the settings."""
    schedule, images = content['schedule'], content['settings']['eval_images']
    lesson = ', '.join(f'{name} {value:g}' for name, value in schedule['lesson'].items() if value)
    judged = f'at most {images} held-out images' if images else 'no images (`eval_images=0`)'
    lines = [
        f'# {content["goal"]}, in stages',
        '',
        f'Stages: {schedule["stages"]}, {schedule["epochs"]} epochs in all on {schedule["train_images"] or "all"} '
        f'training images, lr {schedule["lr"]:g}, seed {schedule["seed"]}. Every stage learns from the dense network: '
        f'{lesson}.',
        '',
        '| stage | epochs | MACs | params | top-1 % sliced | compensated | distilled |',
        '|---|---:|---:|---:|---:|---:|---:|',
    ]
    for row in content['stages']:
        figures = [row.get('sliced'), row.get('compensated'), row['top1']]
        cells = ['' if value is None else f'{value:.2f}' for value in figures]
        costs = [f'{row[name] / 1e6:.3f} M' for name in ('macs', 'params')]
        lines.append(f'| {" | ".join([str(row["stage"] or "dense"), str(row.get("epochs", "")), *costs, *cells])} |')
    lines += [
        '',
        f'Dense, sliced and compensated networks were judged on {judged}, distilled ones on the whole validation set.',
        '',
        f'Dense checkpoint `{content["checkpoint"]}` (sha256 {content["sha256"][:12]}...). `arch.json` and '
        '`finetuned.pth` are the last row.',
    ]
    if 'command' in content:
        lines += ['', '```', content['command'], '```']
    return '\n'.join(lines) + '\n'


def _top1(outcome: Outcome, network: str) -> float | None:
    return outcome.held_out.get(network, {}).get('top1')
