"""Prune to a budget in stages, each with a distillation from the dense network. Repeat the command to continue."""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from upvit_mm.arguments import OptionsAction
from upvit_mm.cli import default_device, one_line_errors
from upvit_mm.launch import command_line
from upvit_mm.workflow.lesson import Lesson


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='mmpretrain config of the dense classifier, or a recipe with it as teacher')
    parser.add_argument('checkpoint', help='the dense weights, in any known layout')
    parser.add_argument('--budget', help="macs=40%%@64x64, params=3.7M (see tools/prune.py; default: the config's)")
    parser.add_argument('--stages', type=int, default=3, help='prunings, each with a distillation (default: 3)')
    parser.add_argument('--epochs', type=int, required=True, help='epochs of all stages together')
    parser.add_argument('--work-dir', type=Path, required=True, help='folder for everything')
    parser.add_argument('--lr', type=float, help="learning rate (default: the config's)")
    parser.add_argument('--seed', type=int, default=0, help='seed of the trainings (default: 0)')
    parser.add_argument('--train-images', type=int, help='class-balanced subset of the training images (default: all)')
    default = "(default: the recipe's; for a dense config only soft 6.4)"
    for name, what in (('soft', 'soft KL'), ('feature', 'feature MSE'), ('token', 'token MSE')):
        parser.add_argument(f'--{name}-weight', dest=name, type=float, help=f'weight of the {what} {default}')
    parser.add_argument('--temperature', type=float, help='temperature of the soft KL')
    parser.add_argument(
        '--prune-options',
        nargs='+',
        action=OptionsAction,
        default={},
        help='settings of the prunings, for example per_class=20 draws=8',
    )
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, help='override settings of the config')
    args = parser.parse_args()
    return argparse.Namespace(**vars(args), launcher='none', local_rank=0)


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    from upvit_mm.runner import load_config
    from upvit_mm.workflow.progressive import Progressive, Schedule
    from upvit_mm.workflow.prune_goal import goal_and_settings

    console = Console(highlight=False, markup=False, soft_wrap=True)
    cfg = load_config(args)
    lesson = Lesson.of(cfg.model.distill) if 'distill' in cfg.model else Lesson()
    given = {name: getattr(args, name) for name in ('soft', 'feature', 'token', 'temperature')}
    lesson = replace(lesson, **{name: value for name, value in given.items() if value is not None})
    schedule = Schedule(args.stages, args.epochs, lesson, args.lr, args.seed, args.train_images)
    cfg.prune = dict(device=default_device()) | dict(cfg.get('prune') or {}) | args.prune_options
    goal, settings = goal_and_settings(cfg, {'budget': args.budget})
    job = Progressive(cfg, args.checkpoint, goal, settings, schedule, args.work_dir, console.print)
    job.run(command=command_line())
    console.print((args.work_dir / 'progressive.md').read_text(encoding='utf-8'))


if __name__ == '__main__':
    with one_line_errors():
        main()
