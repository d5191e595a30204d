"""Prune a dense classifier; train the result and the vanilla network of its architecture in the same way, by seeds.

Repeat the command to continue after an interruption: finished work is reused.
"""

import argparse
from pathlib import Path

from rich.console import Console

from upvit_mm.arguments import OptionsAction
from upvit_mm.cli import default_device, one_line_errors
from upvit_mm.compare.classifier_options import WAYS, ClassifierOptions
from upvit_mm.launch import command_line
from upvit_mm.workflow.lesson import Lesson

LESSON = Lesson()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='mmpretrain config of the dense classifier')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='its weights, in any known layout; if left out, it is trained first, on the same images',
    )
    parser.add_argument('--work-dir', type=Path, required=True, help='folder for everything')
    goal = parser.add_argument_group('goal of the pruning (one of them, unless the config has it)')
    goal = goal.add_mutually_exclusive_group()
    goal.add_argument('--target', help='architecture: a stock name or an arch.json')
    goal.add_argument('--widths', nargs='+', action=OptionsAction, help='fields of arch.json that change')
    goal.add_argument('--budget', help='macs=50%%@64x64, params=40%% (see tools/prune.py)')
    parser.add_argument(
        '--prune-options',
        nargs='+',
        action=OptionsAction,
        default={},
        help='settings of the pruning, for example per_class=20 draws=8',
    )
    parser.add_argument(
        '--epochs', type=int, required=True, help='epochs of every training except the dense one and vanilla-long'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--train-images', type=int, help='class-balanced subset of the training images (default: all)')
    help = 'epochs of the dense network (default if trained here: --epochs); vanilla-long gets the sum of both'
    parser.add_argument('--dense-epochs', type=int, help=help)
    parser.add_argument('--lr', type=float, help="learning rate from scratch (default: the config's)")
    parser.add_argument('--finetune-lr', type=float, help='learning rate of pruned networks (default: --lr)')
    for name, what in (('soft', 'soft KL'), ('feature', 'feature MSE'), ('token', 'token MSE')):
        default = getattr(LESSON, name)
        help = f'weight of the {what}; 0 = without (default: {default:g})'
        parser.add_argument(f'--{name}-weight', type=float, default=default, help=help)
    parser.add_argument('--temperature', type=float, default=LESSON.temperature, help='temperature of the soft KL')
    rows = [way.key for way in WAYS]
    parser.add_argument(
        '--rows', nargs='+', choices=rows, help='which trainings (default: all; vanilla-long only with --dense-epochs)'
    )
    parser.add_argument('--jobs', type=int, default=1, help='trainings at a time; if above 1, with one thread each')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, help='override settings of the config')
    args = parser.parse_args()
    return argparse.Namespace(**vars(args), launcher='none', local_rank=0)


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    from upvit_mm.compare.classifiers import Comparison
    from upvit_mm.runner import load_config
    from upvit_mm.workflow.prune_goal import goal_and_settings

    console = Console(highlight=False, markup=False, soft_wrap=True)
    cfg = load_config(args)
    lesson = Lesson(args.soft_weight, args.feature_weight, args.token_weight, args.temperature)
    names = ('epochs', 'seeds', 'train_images', 'dense_epochs', 'lr', 'finetune_lr', 'rows', 'jobs')
    options = ClassifierOptions(lesson=lesson, **{name: getattr(args, name) for name in names})
    cfg.prune = dict(device=default_device()) | dict(cfg.get('prune') or {}) | args.prune_options
    given = {'target': args.target, 'widths': args.widths, 'budget': args.budget}
    goal, settings = goal_and_settings(cfg, given)
    comparison = Comparison(cfg, args.checkpoint, goal, settings, options, args.work_dir, console.print)
    comparison.run(command=command_line())
    console.print((args.work_dir / 'compare.md').read_text(encoding='utf-8'))


if __name__ == '__main__':
    with one_line_errors():
        main()
