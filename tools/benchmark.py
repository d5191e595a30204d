"""Measure: networks side by side, in one process, in alternating runs."""

import argparse
import json
import re
import shlex
import sys

from rich.console import Console
from rich.table import Table

from upvit_mm.arch import resolve_arch
from upvit_mm.benchmark.backbone import compare_backbones
from upvit_mm.benchmark.rivals import rivals_of
from upvit_mm.cli import one_line_errors
from upvit_mm.files import write_text_atomically


def size(text: str) -> tuple[int, int]:
    if not re.fullmatch(r'[1-9]\d*x[1-9]\d*', text):
        raise argparse.ArgumentTypeError(f'{text!r}: must be HEIGHTxWIDTH in pixels, as 800x1344')
    height, width = text.split('x')
    return int(height), int(width)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    backbone = commands.add_parser('backbone', help='our backbone against others, same weights')
    backbone.add_argument('--arch', default='pvtv2-b0', help='stock name or arch.json')
    backbone.add_argument('--size', type=size, default=(800, 1344), help='HEIGHTxWIDTH of the forward pass')
    backbone.add_argument('--train-size', type=size, default=(512, 512), help='HEIGHTxWIDTH of the training step')
    backbone.add_argument('--against', nargs='*', help='of timm, mmdet (default: all that have it)')
    backbone.add_argument('--batch', type=int, default=1, help='images a step')
    backbone.add_argument('--repeats', type=int, default=7, help='timed runs of each network')
    backbone.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    backbone.add_argument('--amp', action='store_true', help='autocast')
    backbone.add_argument('--threads', type=int, help='CPU threads')
    backbone.add_argument('--save', help='write the figures to this .json file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    arch = resolve_arch(args.arch)
    results = compare_backbones(
        arch,
        rivals_of(arch.family) if args.against is None else args.against,
        {'forward': args.size, 'training': args.train_size},
        args.batch,
        args.repeats,
        args.device,
        args.amp,
        args.threads,
    )
    console = Console()
    console.print(results['settings'])
    for kind in ('forward', 'training'):
        figures = dict(results[kind])
        height, width = figures.pop('size')
        table = Table(title=f'{kind}, {args.batch} x {height}x{width}')
        for column in ('network', 'median s', 'quartiles s', 'ours / it', 'peak MiB'):
            table.add_column(column, justify='left' if column == 'network' else 'right')
        for name, row in figures.items():
            seconds = row['seconds']
            spread = f'{seconds["low"]:.3f}-{seconds["high"]:.3f}'
            peak = f'{row["peak_bytes"] / 2**20:.0f}'
            table.add_row(name, f'{seconds["median"]:.3f}', spread, f'{row["ratio"]:.2f}', peak)
        console.print(table)
    if args.save:
        results['command'] = shlex.join(['python', *sys.argv])
        text = json.dumps(results, indent=2) + '\n'
        write_text_atomically(args.save, text)


if __name__ == '__main__':
    with one_line_errors():
        main()
