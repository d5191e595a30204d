"""Write a copy of a COCO annotation file with the categories of another one, in its order.

mmdet numbers labels in the order of the categories in each file: those of all parts of a data set must agree.
"""

import argparse
from pathlib import Path

from upvit_mm.cli import one_line_errors
from upvit_mm.data.categories import match_categories


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', type=Path, help='annotation file')
    parser.add_argument('--like', type=Path, required=True, help='annotation file of the training data')
    parser.add_argument('--out', type=Path, help='the new file (default: FILE_matched.json in the folder of FILE)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    matched = match_categories(args.file, args.like, args.out)
    print(f'{matched.path}: {len(matched.names)} categories: {", ".join(matched.names)}')
    for old, new in matched.renamed.items():
        print(f'{old!r} is now {new!r}')
    for text, names in (('added, without objects', matched.added), ('only in this file, now last', matched.more)):
        if names:
            print(f'{text}: {", ".join(names)}')


if __name__ == '__main__':
    with one_line_errors():
        main()
