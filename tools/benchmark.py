"""Measure: networks side by side, in one process, in alternating runs."""

import argparse
import json
import re
import shlex
import statistics
import sys

from mmengine.config import Config
from rich.console import Console

from upvit_mm.arch import resolve_arch
from upvit_mm.benchmark.backbone import compare_backbones
from upvit_mm.benchmark.pruning import benchmark_pruning, time_large_network
from upvit_mm.benchmark.rivals import rivals_of
from upvit_mm.cli import one_line_errors, table_of
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
    pruning = commands.add_parser('pruning', help='speed, agreement and worth of the scores of a trained classifier')
    pruning.add_argument('config', help='its mmpretrain config')
    pruning.add_argument('checkpoint', help='its weights')
    pruning.add_argument('--seeds', type=int, nargs='+', default=(0, 1, 2), help='of proxy sets and methods')
    pruning.add_argument('--per-class', type=int, default=10, help='images of every class to score on')
    pruning.add_argument('--compensate-per-class', type=int, default=40, help='images of every class to compensate on')
    pruning.add_argument('--ridge', type=float, default=1e-2, help='of the compensation')
    pruning.add_argument('--eval-images', type=int, default=1000, help='held-out images that judge')
    large = commands.add_parser('large-pruning', help='fisher against exact scores on a large network, random weights')
    large.add_argument('--arch', default='deit-small', help='stock name or arch.json')
    large.add_argument('--images', type=int, default=4, help='in the batch')
    for command in (backbone, pruning, large):
        command.add_argument('--threads', type=int, help='CPU threads')
        command.add_argument('--save', help='write the figures to this .json file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    console = Console(soft_wrap=True)
    results = {'backbone': run_backbone, 'pruning': run_pruning, 'large-pruning': run_large}[args.command](
        args, console
    )
    if args.save:
        results['command'] = shlex.join(['python', *sys.argv])
        write_text_atomically(args.save, json.dumps(results, indent=2) + '\n')


def run_backbone(args: argparse.Namespace, console: Console) -> dict:
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
    console.print(results['settings'])
    columns = ['network', 'median s', 'quartiles s', 'ours / it', 'peak MiB']
    for kind in ('forward', 'training'):
        figures = dict(results[kind])
        height, width = figures.pop('size')
        rows = []
        for name, row in figures.items():
            seconds = row['seconds']
            spread = f'{seconds["low"]:.3f}-{seconds["high"]:.3f}'
            peak = f'{row["peak_bytes"] / 2**20:.0f}'
            rows.append([name, f'{seconds["median"]:.3f}', spread, f'{row["ratio"]:.2f}', peak])
        console.print(table_of(f'{kind}, {args.batch} x {height}x{width}', columns, rows))
    return results


def run_pruning(args: argparse.Namespace, console: Console) -> dict:
    results = benchmark_pruning(
        Config.fromfile(args.config),
        args.checkpoint,
        args.seeds,
        args.per_class,
        args.compensate_per_class,
        args.ridge,
        args.eval_images,
        args.threads,
    )
    console.print(results['settings'])
    every, agreed = results['all channels'], results['agreement']
    console.print(f'exact score of a candidate: {results["candidate"]["median ratio"]:.1f}x faster than by rebuilding')
    console.print(
        f'all channels, {every["images"]} images: kl {every["kl"]:.2f} s, fisher {every["fisher"]:.3f} s, '
        f'{every["ratio"]:.0f}x'
    )
    console.print(
        f'Spearman of fisher ({agreed["draws"]} draws) and kl over dims: median {agreed["median"]:.3f}, worst '
        f'{agreed["worst"]:.3f} ({agreed["worst dim"]})'
    )
    columns = ['method', 'KL plain', 'KL compensated', 'gain', 'top-1 plain', 'top-1 compensated']
    for name, methods in results['one-shot'].items():
        rows = []
        for method, row in methods.items():
            kl, top1 = ({kind: statistics.median(r[key] for r in row[kind]) for kind in row} for key in ('kl', 'top1'))
            cells = [f'{kl["plain"]:.4f}', f'{kl["compensated"]:.4f}', f'{kl["plain"] / kl["compensated"]:.1f}x']
            rows.append([method, *cells, f'{top1["plain"]:.1f}', f'{top1["compensated"]:.1f}'])
        console.print(table_of(f'{name}, median of {len(args.seeds)} seeds', columns, rows))
    console.print(f'peak memory {results["peak_memory_bytes"] / 2**20:.0f} MiB')
    return results


def run_large(args: argparse.Namespace, console: Console) -> dict:
    results = time_large_network(args.arch, args.images, threads=args.threads)
    console.print(
        f'{results["arch"]}, {results["channels"]} channels, {results["images"]} images: kl {results["kl"]:.0f} s '
        f'(from {results["timed candidates"]} timed candidates), fisher {results["fisher"]:.2f} s, '
        f'{results["ratio"]:.0f}x; a candidate costs {results["candidate in forward passes"]:.2f} forward passes'
    )
    return results


if __name__ == '__main__':
    with one_line_errors():
        main()
