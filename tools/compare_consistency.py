"""Compare networks: how consistent are their tokens with those of the dense one, and does this predict AP?"""

import argparse
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import Progress

from upvit_mm.arch.size import parse_size, size_text
from upvit_mm.arguments import OptionsAction
from upvit_mm.choices import FILLS
from upvit_mm.cli import check_device, default_device, one_line_errors
from upvit_mm.launch import command_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config (mmpretrain or mmdet) of the dense classifier or detector')
    parser.add_argument('checkpoint', help='its weights, in any known layout')
    parser.add_argument(
        '--networks',
        nargs='+',
        required=True,
        metavar='NAME=ARCH,CHECKPOINT',
        help='ARCH: stock name or arch.json; a NAME given several times is one row, with mean and spread over seeds',
    )
    parser.add_argument('--drop-tokens', nargs='*', choices=FILLS, default=[], help='ways to fill dropped tokens')
    parser.add_argument(
        '--equal-macs', metavar='NAME', help='network with the MACs of token dropping (default: the first)'
    )
    parser.add_argument('--images', required=True, help='folder (searched recursively) or COCO annotation file')
    parser.add_argument('--image-root', help="folder of the annotation file's images (default: searched near the file)")
    parser.add_argument('--max-images', type=int, default=50, help='number of random images (default: 50)')
    parser.add_argument('--sizes', nargs='+', default=['224', '800x1333'], help='SIDE or HEIGHTxWIDTH in pixels')
    parser.add_argument(
        '--detectors',
        help='detectors.json of tools/compare_detectors.py with backbones of these names: how well does each measure, '
        'at the last of --sizes, predict AP?',
    )
    parser.add_argument('--ap', default='bbox_mAP', help='AP to predict (default: bbox_mAP)')
    parser.add_argument('--pictures', type=int, default=3, help='rows of queries.png (default: 3)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the choice of images and tokens')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda if there is a GPU')
    parser.add_argument('--work-dir', required=True, help='folder for the report')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, help='override settings of the config')
    args = parser.parse_args()
    return argparse.Namespace(**vars(args), launcher='none', local_rank=0)


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    from upvit_mm.compare.contestants import Contestant
    from upvit_mm.compare.seeds import mean_over_seeds
    from upvit_mm.compare.token_figures import draw_contrast, draw_queries
    from upvit_mm.compare.token_report import write_contrast
    from upvit_mm.compare.tokens import Field, groups_of, predictors_of, read_ap
    from upvit_mm.compare.validity import correlations, draw_validity
    from upvit_mm.data.image_files import find_images
    from upvit_mm.runner import load_config

    device = args.device or default_device()
    check_device(device)
    sizes = [parse_size(text) for text in args.sizes]
    contestants = [Contestant.parse(text) for text in args.networks]
    ap = None if args.detectors is None else read_ap(args.detectors, args.ap)
    predictors = None if ap is None else predictors_of(groups_of(contestants), ap)  # refuse before hours of measuring
    field = Field.of(load_config(args), args.checkpoint, contestants, args.drop_tokens, args.equal_macs, device)
    images = find_images(args.images, args.image_root, args.max_images, args.seed)
    terminal = Console(stderr=True)
    with Progress(console=terminal, disable=not terminal.is_terminal) as progress:
        task = progress.add_task('images', total=len(images) * len(sizes))
        content = field.compare(images, sizes, args.seed, lambda n: progress.advance(task, n))
    content['settings'] = {'source': args.images, 'images': len(images), 'seed': args.seed}
    content['command'] = command_line()
    means = mean_over_seeds(content['results'], content['groups'])
    firsts = {title: field.networks[names[0]] for title, names in field.groups.items()}
    figures = {
        'contrast.png': draw_contrast(means),
        'queries.png': draw_queries({'dense': field.dense, **firsts}, images, sizes[-1], args.pictures),
    }
    if predictors is not None:
        size = size_text(sizes[-1])
        found = mean_over_seeds(content['results'], predictors)
        macs = {title: fmean(content['macs'][name][size] for name in names) for title, names in predictors.items()}
        content['predicted'] = {'ap': args.ap, 'size': size, 'file': args.detectors}
        content['predicted']['rows'] = correlations(found, ap, size, macs)
        figures['predicted.png'] = draw_validity(found, ap, size, args.ap)
    write_contrast(Path(args.work_dir), content, figures)
    Console(soft_wrap=True).print(f'{args.work_dir}: contrast.md, .csv, .json, {", ".join(figures)}', highlight=False)


if __name__ == '__main__':
    with one_line_errors():
        main()
