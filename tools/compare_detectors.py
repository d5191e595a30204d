"""Train one detector on several backbones in the same way, by seeds, and compare AP, costs and speed; or compare
trained detectors (--evaluate).

Repeat the command to continue after an interruption: finished work is reused. On several GPUs use
tools/dist_compare_detectors.sh.
"""

import argparse
from pathlib import Path

from rich.console import Console

from upvit_mm.arch.size import parse_size
from upvit_mm.arguments import LAUNCHERS, OptionsAction
from upvit_mm.cli import one_line_errors
from upvit_mm.compare.detector_options import DetectorOptions
from upvit_mm.launch import command_line

OPTIONS = DetectorOptions()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='mmdet config of the detector, on any backbone of this package')
    parser.add_argument(
        '--backbones',
        nargs='+',
        required=True,
        metavar='NAME=ARCH,CHECKPOINT',
        help='ARCH: stock name or arch.json; CHECKPOINT in any known layout, {seed} in it is replaced; without it '
        '(NAME=ARCH): random weights. With --evaluate also NAME=CONFIG.py,CHECKPOINT: a detector with its own model',
    )
    parser.add_argument('--work-dir', required=True, help='folder for everything')
    parser.add_argument('--seeds', type=int, nargs='+', help='one training for each (default: 0 1 2)')
    parser.add_argument('--epochs', type=int, help="epochs of a training (default: the config's); scales schedules")
    parser.add_argument(
        '--evaluate',
        action='store_true',
        help="no training: each CHECKPOINT is a whole detector, which is evaluated on config's test data, with its "
        'test pipeline and evaluator',
    )
    parser.add_argument('--baseline', metavar='NAME', help='backbone to compare with (default: the first)')
    parser.add_argument('--size', help="HEIGHTxWIDTH for costs and speed (default: the test pipeline's)")
    parser.add_argument('--jobs', type=int, default=OPTIONS.jobs, help='trainings at a time (default: 1)')
    parser.add_argument('--batch', type=int, default=OPTIONS.batch, help='images per batch for images/s (default: 4)')
    parser.add_argument(
        '--repeats', type=int, default=OPTIONS.repeats, help='timed runs of each detector; 0 = none (default: 10)'
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the real batch size')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, help='override settings of the config')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    from upvit_mm.compare.contestants import Contestant
    from upvit_mm.compare.detectors import DetectorComparison
    from upvit_mm.runner import end_together, load_config, set_training_options

    console = Console(highlight=False, markup=False, soft_wrap=True)
    seeds = args.seeds or OPTIONS.seeds
    if args.evaluate:
        seeds = ()
        console.print('--evaluate: nothing is trained; --seeds, --epochs and --jobs are ignored')
    cfg = load_config(args)
    set_training_options(cfg, args.amp, args.auto_scale_lr, resume=None)
    size = None if args.size is None else parse_size(args.size)
    options = DetectorOptions(seeds, args.epochs, args.baseline, size, args.jobs, args.batch, args.repeats)
    contestants = [Contestant.parse(text) for text in args.backbones]
    comparison = DetectorComparison(cfg, contestants, options, Path(args.work_dir), console.print)
    if comparison.run(command=command_line()):
        console.print((Path(args.work_dir) / 'detectors.md').read_text(encoding='utf-8'))
    end_together()


if __name__ == '__main__':
    with one_line_errors():
        main()
