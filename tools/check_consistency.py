"""Are the tokens of a pruned network still those of the dense one? Stage by stage, at any size, with thresholds."""

import argparse
import math
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from upvit_mm.arch.size import parse_size
from upvit_mm.arguments import OptionsAction
from upvit_mm.cli import check_device, default_device, one_line_errors, table_of
from upvit_mm.launch import command_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for side in ('dense', 'pruned'):
        help = f'config (mmpretrain or mmdet) and checkpoint of the {side} classifier or detector'
        parser.add_argument(f'--{side}', nargs=2, required=True, metavar=('CONFIG', 'CHECKPOINT'), help=help)
        parser.add_argument(f'--{side}-arch', help="stock name or arch.json to build instead of that config's arch")
        parser.add_argument(f'--{side}-cfg-options', nargs='+', action=OptionsAction, help='override its settings')
    parser.add_argument('--images', required=True, help='folder (searched recursively) or COCO annotation file')
    parser.add_argument('--image-root', help="folder of the annotation file's images (default: searched near the file)")
    parser.add_argument('--max-images', type=int, default=50, help='number of random images (default: 50)')
    parser.add_argument(
        '--sizes',
        nargs='+',
        default=['224', '800x1333'],
        help='SIDE or HEIGHTxWIDTH in pixels to stretch images to (default: 224 800x1333)',
    )
    parser.add_argument('--plan', help='plan.json of the pruning; adds the kept-channel error')
    parser.add_argument(
        '--fail-under', nargs='+', action=OptionsAction, default={}, help='thresholds, for example cka=0.9 relation=0.8'
    )
    parser.add_argument('--last-stage-only', action='store_true', help='check thresholds only at the last stage')
    parser.add_argument('--pictures', type=int, default=3, help='rows of queries.png (default: 3)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the choice of images and tokens')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda if there is a GPU')
    parser.add_argument('--threads', type=int, help="CPU threads (default: torch's setting)")
    parser.add_argument('--work-dir', type=Path, required=True, help='folder for the report')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    import torch

    from upvit_mm.compare.consistency_gate import ConsistencyGate
    from upvit_mm.compare.token_figures import draw_queries, draw_stages
    from upvit_mm.compare.token_report import write_pair
    from upvit_mm.compare.token_table import stage_table
    from upvit_mm.consistency import compare
    from upvit_mm.data.image_files import find_images
    from upvit_mm.models.network import load_network
    from upvit_mm.pruning import PrunePlan

    device = args.device or default_device()
    check_device(device)
    if args.threads:
        torch.set_num_threads(args.threads)
    gate = ConsistencyGate(args.fail_under, args.last_stage_only)  # it finds a misspelt name now, not after minutes
    sizes = [parse_size(text) for text in args.sizes]
    plan = None if args.plan is None else PrunePlan.load(args.plan)
    dense = load_network(*args.dense, args.dense_cfg_options, args.dense_arch, device)
    pruned = load_network(*args.pruned, args.pruned_cfg_options, args.pruned_arch, device)
    images = find_images(args.images, args.image_root, args.max_images, args.seed)
    terminal = Console(stderr=True)
    with Progress(console=terminal, disable=not terminal.is_terminal) as progress:
        task = progress.add_task('images', total=len(images) * len(sizes))
        results = compare(dense, pruned, images, sizes, plan, args.seed, lambda n: progress.advance(task, n))

    settings = {'source': args.images, 'images': len(images), 'seed': args.seed, 'plan': args.plan}
    content = {'command': command_line(), 'dense': dense.record, 'pruned': pruned.record}
    content |= {'settings': settings, 'unreadable': list(map(str, images.unreadable)), 'results': results}
    content |= {'gate': gate.record(results)} if args.fail_under else {}
    largest = max(sizes, key=math.prod)
    figures = {'stages.png': draw_stages(results)}
    figures['queries.png'] = draw_queries({'dense': dense, 'pruned': pruned}, images, largest, args.pictures)
    write_pair(args.work_dir, content, figures)
    console = Console()
    for size, stages in results.items():
        table = stage_table(stages)
        console.print(table_of(size, table.columns, table.texts()))
    console.print(f'{args.work_dir}: consistency.md, .json, stages.png, queries.png', highlight=False, soft_wrap=True)
    if args.fail_under:
        console.print(content['gate']['verdict'], highlight=False, soft_wrap=True)
        gate.check(results)


if __name__ == '__main__':
    with one_line_errors():
        main()
