"""Write a real data set in the form that configs read: CIFAR-10, nuclei, BCCD, or your own VOC folder.

Each picture is decoded and checked; what is left out is counted. See docs/own_data.md.
"""

import argparse
from pathlib import Path

from upvit_mm.cli import one_line_errors

SOURCES = {
    'cifar10': 'cifar-10-python.tar.gz, its unpacked folder, or an archive or folder of PNG strips',
    'nuclei': 'folder stage1_train of the 2018 Data Science Bowl',
    'bccd': 'clone of github.com/Shenggan/BCCD_Dataset',
    'voc': 'folder with Annotations, JPEGImages and ImageSets/Main',
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    sets = parser.add_subparsers(dest='data', required=True, metavar='DATA', help=', '.join(SOURCES))
    commands = {name: sets.add_parser(name, help=text, description=text) for name, text in SOURCES.items()}
    for name, command in commands.items():
        command.add_argument('source', type=Path, metavar='SOURCE', help=SOURCES[name])
        command.add_argument('--out', type=Path, required=True, help='folder of the set, for example data/NAME')
        command.add_argument('--overwrite', action='store_true', help='write a finished set again')
    commands['nuclei'].add_argument(
        '--val-fraction', type=float, help='share for validation (default: the split that our figures are on)'
    )
    commands['voc'].add_argument('--classes', nargs='+', help='categories, in order (default: all that occur)')
    for part in ('train', 'val'):
        commands['voc'].add_argument(f'--{part}', help=f'list of {part} in ImageSets/Main, if it is not clear')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # after parsing: they import OpenMMLab, which takes seconds
    from rich import print as show
    from rich.progress import track

    from upvit_mm.cli import table_of
    from upvit_mm.data.real.parts import HEADER
    from upvit_mm.data.real.sets import prepare_set

    options = {key: getattr(args, key, None) for key in ('val_fraction', 'classes', 'train', 'val')}
    found = prepare_set(args.data, args.source, args.out, track, options, args.overwrite)
    show(table_of(args.data, HEADER, [counts.row(part) for part, counts in found.parts.items()]))
    again = f'already there, made from {found.source}; --overwrite writes it again'
    print(f'{args.out}: {"written" if found.written else again}')


if __name__ == '__main__':
    with one_line_errors():
        main()
