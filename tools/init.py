"""Write a config for your own pictures: a detector on COCO or VOC annotations, or a classifier on class folders.

It looks at the data and writes classes, paths, sizes, the most objects in a picture and a training that fits them.
"""

import argparse
from pathlib import Path

from upvit_mm.cli import one_line_errors

MODELS = ('retinanet', 'mask-rcnn')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('task', choices=('detector', 'classifier'))
    parser.add_argument('data', type=Path, help='folder: COCO files and pictures; VOC; train/CLASS and val/CLASS')
    parser.add_argument('--backbone', required=True, metavar='ARCH[,CHECKPOINT]', help='arch.json or a stock name')
    parser.add_argument('--out', type=Path, default=Path('own.py'), help='the config to write')
    parser.add_argument('--model', choices=MODELS, default=MODELS[0], help='detector; mask-rcnn needs segmentation')
    parser.add_argument('--train', help='name of the training file, list or folder in DATA, if it is not clear')
    parser.add_argument('--val', help='the same of the validation data')
    parser.add_argument('--epochs', type=int, help='of the training (default: 12 to 100, by the number of pictures)')
    parser.add_argument('--batch', type=int, help='pictures in a batch (default: what fits one GPU, at most 16 or 64)')
    parser.add_argument('--size', help='detector: HEIGHTxWIDTH that pictures are made to fit (default: their own)')
    parser.add_argument('--overwrite', action='store_true', help='replace the config')
    args = parser.parse_args()
    if args.out.exists() and not args.overwrite:
        parser.error(f'--out {args.out} exists; give another name, or --overwrite')
    if args.size and args.task == 'classifier':
        parser.error('--size is for detectors; the crops of a classifier are set in its config')
    return args


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    from upvit_mm.arch.size import parse_size
    from upvit_mm.data.names import listed
    from upvit_mm.workflow.own_config import OwnConfig

    arch, _, checkpoint = args.backbone.partition(',')
    size = parse_size(args.size) if args.size else None
    chosen = (args.model, args.train, args.val, args.epochs, args.batch, size)
    data, cfg = OwnConfig(args.task, args.data, arch, checkpoint or None, args.out, *chosen).write()
    print(f'{len(data.classes)} classes: {listed(data.classes)}')
    print(f'{data.train.pictures} training and {data.val.pictures} validation pictures, usually {data.size} pixels')
    if data.most:
        print(f'up to {data.most} objects in a picture')
    print(f'{cfg.train_cfg.max_epochs} epochs, batches of {cfg.train_dataloader.batch_size} on one GPU')
    if not checkpoint:
        print('the backbone starts from random weights; to start from a checkpoint give --backbone ARCH,CHECKPOINT')
    print(f'{args.out}: now run python -m upvit_mm.doctor {args.out}, then python tools/train.py {args.out}')


if __name__ == '__main__':
    with one_line_errors():
        main()
