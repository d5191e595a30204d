"""Train a detector (mmdet config) or a classifier (mmpretrain config)."""

import argparse

from upvit_mm.arguments import add_run_arguments
from upvit_mm.cli import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--amp', action='store_true', help='mixed-precision training')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the lr with the real batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from this checkpoint, or without a value from the latest one in the work dir',
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    from upvit_mm.runner import build_runner, end_together, load_config, set_training_options

    cfg = load_config(args)
    set_training_options(cfg, args.amp, args.auto_scale_lr, args.resume)
    build_runner(cfg, parts=('train', 'val')).train()
    end_together()


if __name__ == '__main__':
    with one_line_errors():
        main()
