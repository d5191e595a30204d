"""Write the embedded digits as a classification set and as COCO scenes (see docs/digits.md)."""

import argparse
from pathlib import Path

from rich.progress import track

from upvit_mm.cli import one_line_errors
from upvit_mm.data.prepare import SCENE_KINDS, prepare_digits


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='data/digits', help='folder of the data set (default: %(default)s)')
    parser.add_argument('--scenes', type=int, default=800, help='training scenes; a quarter as many for validation')
    parser.add_argument('--size', type=int, default=128, help='side of a scene in pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--layout',
        choices=tuple(SCENE_KINDS),
        default='digits',
        help='coco: folders, files and category names of COCO, so that configs for COCO run unchanged',
    )
    parser.add_argument('--sheet', type=Path, help='write a picture of some validation scenes to this .png file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    written = prepare_digits(args.out, args.scenes, args.size, args.seed, track, args.layout)
    print(f'{args.out}: {"written" if written else "already there with these settings"}')
    if args.sheet:
        from upvit_mm.compare.pictures import save_ground_truth_sheet  # imports OpenMMLab, which takes seconds

        save_ground_truth_sheet(args.sheet, Path(args.out), 'val')


if __name__ == '__main__':
    with one_line_errors():
        main()
