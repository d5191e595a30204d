"""Convert a checkpoint of a plain ViT or PVTv2 of any known layout to this package's names, or back to timm's."""

import argparse
import logging
from pathlib import Path

from upvit_mm.choices import WEIGHTS
from upvit_mm.cli import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', metavar='IN', help='checkpoint to read')
    parser.add_argument('target', metavar='OUT', help='.pth file to write')
    parser.add_argument('--to', choices=('ours', 'timm'), default='ours', help='layout to write (default: %(default)s)')
    parser.add_argument('--prefix', help="text before the backbone's keys (default: found automatically)")
    parser.add_argument(
        '--weights', choices=WEIGHTS, help="averages or raw weights (default: those that the file's maker evaluates)"
    )
    parser.add_argument('--no-head', action='store_true', help='leave the head out')
    parser.add_argument(
        '--patch-size',
        type=int,
        metavar='PIXELS',
        help='resample the patches of a plain ViT to this side, for example from 14 to 16; approximate',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from upvit_mm.checkpoints import convert_file  # after parsing: it imports torch, which takes seconds

    logging.basicConfig(format='%(message)s')
    logging.getLogger('upvit_mm').setLevel(logging.INFO)
    source, target = Path(args.source), Path(args.target)
    print(
        convert_file(source, target, args.to, args.prefix, args.weights, not args.no_head, patch_size=args.patch_size)
    )


if __name__ == '__main__':
    with one_line_errors():
        main()
