"""Measure costs (counted module by module), times (alternating runs in one process) and what features are worth.

Each command imports what it needs after parsing: torch and OpenMMLab take seconds.
"""

import argparse
import json
import statistics
from dataclasses import asdict

from mmengine.config import Config
from rich.console import Console

from upvit_mm.arch import resolve_arch
from upvit_mm.arch.size import parse_size
from upvit_mm.choices import REPAIRED
from upvit_mm.cli import check_device, one_line_errors, table_of
from upvit_mm.files import write_text_atomically
from upvit_mm.launch import command_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    costs = add_complexity(commands)
    speed, rivals = add_latency(commands), add_backbone(commands)
    for command, repeats in ((speed, 15), (rivals, 7)):
        command.add_argument('--repeats', type=int, default=repeats, help='timed runs of each network')
        command.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
        command.add_argument('--amp', action='store_true', help='autocast')
    pruning, repair, features = add_pruning(commands), add_repair(commands), add_features(commands)
    large = commands.add_parser('large-pruning', help='fisher against exact scores on a large network, random weights')
    large.add_argument('--arch', default='deit-small', help='stock name or arch.json')
    large.add_argument('--images', type=int, default=4, help='in the batch')
    annotations = commands.add_parser(
        'annotations', help='the check of an annotation file, by default of the size of COCO'
    )
    annotations.add_argument('--images', type=int, default=118_287, help='images in the file')
    annotations.add_argument('--objects', type=int, default=860_001, help='objects in the file')
    for command in (speed, rivals, pruning, repair, features, large):
        command.add_argument('--threads', type=int, help="CPU threads (default: torch's setting)")
    for command in (costs, speed, rivals, pruning, repair, features, large, annotations):
        command.add_argument('--save', help='write the figures to this .json file')
    return parser.parse_args()


def add_complexity(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    costs = commands.add_parser('complexity', help='multiply-accumulates and parameters, module by module')
    network = costs.add_mutually_exclusive_group(required=True)
    network.add_argument('--arch', help='stock name or arch.json')
    network.add_argument('--config', help='config of a detector (mmdet) or a classifier (mmpretrain)')
    costs.add_argument('--sizes', nargs='+', default=['224', '800x1333'], help='SIDE or HEIGHTxWIDTH of the image')
    costs.add_argument('--num-classes', type=int, default=1000, help='classes with --arch; 0 = only the backbone')
    costs.add_argument(
        '--depth', type=int, choices=range(5), default=3, help='1 stages, 2 blocks, 3 parts of blocks, 4 modules'
    )
    return costs


def add_latency(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    speed = commands.add_parser('latency', help='latency and throughput of several networks')
    network = speed.add_mutually_exclusive_group(required=True)
    network.add_argument('--arch', nargs='+', help='backbones: stock names or arch.json, random weights')
    network.add_argument(
        '--config',
        nargs='+',
        action='append',
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a detector (random weights without a checkpoint); once for each',
    )
    speed.add_argument('--sizes', nargs='+', default=['800x1344'], help='SIDE or HEIGHTxWIDTH of the images')
    speed.add_argument('--batch', type=int, nargs='+', default=[1], help='images per batch')
    speed.add_argument('--channels-last', action='store_true', help='memory format of the images')
    speed.add_argument('--compile', action='store_true', help='with torch.compile')
    speed.add_argument('--against', help='file of an earlier run with the same settings')
    return speed


def add_backbone(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    rivals = commands.add_parser('backbone', help='our backbone against others, same weights')
    rivals.add_argument('--arch', default='pvtv2-b0', help='stock name or arch.json')
    rivals.add_argument('--size', default='800x1344', help='HEIGHTxWIDTH of the forward pass')
    rivals.add_argument('--train-size', default='512x512', help='HEIGHTxWIDTH of the training step')
    rivals.add_argument('--against', nargs='*', help='timm, mmdet (default: all that have this network)')
    rivals.add_argument('--batch', type=int, default=1, help='images per step')
    return rivals


def add_pruning(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    pruning = commands.add_parser('pruning', help='speed, agreement and worth of the scores of a trained classifier')
    pruning.add_argument('config', help='its mmpretrain config')
    pruning.add_argument('checkpoint', help='its weights')
    pruning.add_argument('--seeds', type=int, nargs='+', default=(0, 1, 2), help='seeds of proxy sets and methods')
    pruning.add_argument('--per-class', type=int, default=10, help='images of every class for scoring')
    pruning.add_argument('--compensate-per-class', type=int, default=40, help='images of every class for compensation')
    pruning.add_argument(
        '--ridge', type=float, help='regularisation strength of the compensation (default: chosen for each layer)'
    )
    pruning.add_argument('--eval-images', type=int, default=1000, help='held-out images for evaluation')
    return pruning


def add_repair(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    repair = commands.add_parser('repair', help='pruning and repairs without training, ours and those of others')
    repair.add_argument('config', help='mmpretrain config of a trained classifier')
    repair.add_argument('checkpoint', help='its weights')
    repair.add_argument('--budget', default='macs=50%', help='of the pruned networks')
    known = '; '.join(f'{key}: {text}' for key, text in REPAIRED.items())
    repair.add_argument('--widths', nargs='+', choices=REPAIRED, default=[*REPAIRED], help=known)
    repair.add_argument('--seeds', type=int, nargs='+', default=(0,), help='seeds of the images')
    repair.add_argument('--per-class', type=int, default=16, help='images of every class for scores and repair')
    repair.add_argument('--ridge', type=float, default=1e-2, help='regularisation strength of all repairs but ours')
    repair.add_argument('--eval-images', type=int, default=600, help='held-out images for evaluation')
    repair.add_argument('--round-to', type=int, default=8, help='widths are multiples of it')
    return repair


def add_features(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    features = commands.add_parser('features', help='k nearest neighbours and a linear probe of backbones, no head')
    features.add_argument(
        'networks',
        nargs='+',
        metavar='NAME=ARCH,CHECKPOINT',
        help='ARCH: stock name or arch.json; the first network is the one that others are compared with',
    )
    features.add_argument('--data', required=True, help='folder with train and val, each with folders of classes')
    features.add_argument('--size', default='224', help='SIDE or HEIGHTxWIDTH in pixels to stretch pictures to')
    features.add_argument('--num-train', type=int, default=2400, help='random training pictures')
    features.add_argument('--num-val', type=int, default=600, help='random validation pictures')
    features.add_argument('--seed', type=int, default=0, help='seed of the choice of pictures')
    features.add_argument('--neighbours', type=int, default=20, help='that vote')
    features.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    return features


def main() -> None:
    args = parse_args()
    import torch

    if getattr(args, 'threads', 0) is None:
        args.threads = torch.get_num_threads()
    check_device(getattr(args, 'device', 'cpu'))  # complexity and the commands of pruning have none
    console = Console(soft_wrap=True)
    commands = {'complexity': run_complexity, 'latency': run_latency, 'backbone': run_backbone}
    commands |= {'pruning': run_pruning, 'repair': run_repair, 'large-pruning': run_large}
    commands |= {'features': run_features, 'annotations': run_annotations}
    results = commands[args.command](args, console)
    if args.save:
        results['command'] = command_line()
        write_text_atomically(args.save, json.dumps(results, indent=2, default=asdict) + '\n')


def run_complexity(args: argparse.Namespace, console: Console) -> dict:
    from upvit_mm.benchmark import complexity

    sizes = [parse_size(text) for text in args.sizes]
    if args.config:
        results = complexity.measure_config(Config.fromfile(args.config), sizes)
    else:
        results = complexity.measure_arch(resolve_arch(args.arch), sizes, args.num_classes)
    for table in complexity.tables_of(results, args.depth):
        console.print(table_of(*table))
    return results


def run_latency(args: argparse.Namespace, console: Console) -> dict:
    from upvit_mm.benchmark import latency

    sizes = [parse_size(text) for text in args.sizes]
    settings = latency.LatencySettings(
        sizes, args.batch, args.device, args.amp, args.channels_last, args.compile, args.threads
    )
    networks = latency.backbones(args.arch) if args.arch else latency.detectors(args.config)
    results = latency.measure_latency(networks, settings, args.repeats, args.against)
    console.print(results['machine'])
    for table in latency.tables_of(results):
        console.print(table_of(*table))
    return results


def run_backbone(args: argparse.Namespace, console: Console) -> dict:
    from upvit_mm.benchmark import backbone
    from upvit_mm.benchmark.rivals import rivals_of

    arch = resolve_arch(args.arch)
    results = backbone.compare_backbones(
        arch,
        rivals_of(arch.family) if args.against is None else args.against,
        {'forward': parse_size(args.size), 'training': parse_size(args.train_size)},
        args.batch,
        args.repeats,
        args.device,
        args.amp,
        args.threads,
    )
    console.print(results['settings'])
    for table in backbone.tables_of(results):
        console.print(table_of(*table))
    return results


def run_pruning(args: argparse.Namespace, console: Console) -> dict:
    from upvit_mm.benchmark.pruning import benchmark_pruning

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


def run_repair(args: argparse.Namespace, console: Console) -> dict:
    from upvit_mm.benchmark import repairs
    from upvit_mm.pruning.budget import Budget

    budget, cfg = Budget.parse(args.budget), Config.fromfile(args.config)
    settings = (args.widths, args.seeds, args.per_class, args.ridge, args.eval_images, args.round_to, args.threads)
    results = repairs.benchmark_repairs(cfg, args.checkpoint, budget, *settings)
    console.print(results['settings'])
    for title, table in repairs.tables_of(results):
        console.print(table_of(title, table.columns, table.texts()))
    return results


def run_features(args: argparse.Namespace, console: Console) -> dict:
    import torch

    from upvit_mm.benchmark import features

    torch.set_num_threads(args.threads)
    pictures = (args.data, parse_size(args.size), args.num_train, args.num_val, args.seed)
    settings = features.FeatureSettings(*pictures, args.neighbours, args.device)
    results = features.benchmark_features(args.networks, settings)
    console.print(results['settings'])
    for title, table in features.tables_of(results):
        console.print(table_of(title, table.columns, table.texts()))
    return results


def run_large(args: argparse.Namespace, console: Console) -> dict:
    from upvit_mm.benchmark.pruning import time_large_network

    results = time_large_network(args.arch, args.images, threads=args.threads)
    console.print(
        f'{results["arch"]}, {results["channels"]} channels, {results["images"]} images: kl {results["kl"]:.0f} s '
        f'(from {results["timed candidates"]} timed candidates), fisher {results["fisher"]:.2f} s, '
        f'{results["ratio"]:.0f}x; a candidate costs {results["candidate in forward passes"]:.2f} forward passes'
    )
    return results


def run_annotations(args: argparse.Namespace, console: Console) -> dict:
    from upvit_mm.benchmark.annotations import measure_annotations

    results = measure_annotations(args.images, args.objects)
    console.print(
        f'{results["bytes"] / 1e6:.0f} MB, {results["images"]} images, {results["objects"]} objects; processor time of '
        f'the first check {results["first"]:.1f} s, of the second {results["second"]:.2f} s, to read the JSON alone '
        f'{results["json"]:.1f} s ({results["ratio"]:.1f}x)'
    )
    return results


if __name__ == '__main__':
    with one_line_errors():
        main()
