"""Make a scores.pt from the text files that the authors of UP-ViTs publish for DeiT-B, instead of scoring."""

import argparse
from pathlib import Path

from upvit_mm.arch import resolve_arch
from upvit_mm.cli import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'folder', metavar='SCORES_DIR', type=Path, help='importance/kl5k/importance of their repository'
    )
    parser.add_argument('target', metavar='OUT', type=Path, help='.pt file to write')
    parser.add_argument(
        '--arch', default='deit-base', help='the scored architecture, a stock name or an arch.json (%(default)s)'
    )
    parser.add_argument('--official-parsing', action='store_true', help='misread numbers as their ranking script does')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # after parsing: it imports torch, which takes seconds
    from upvit_mm.pruning.official_scores import import_official_scores

    print(import_official_scores(args.folder, args.target, resolve_arch(args.arch), args.official_parsing))


if __name__ == '__main__':
    with one_line_errors():
        main()
