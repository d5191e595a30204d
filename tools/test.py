"""Evaluate a checkpoint of a detector (mmdet config) or a classifier (mmpretrain config)."""

import argparse
import json
from pathlib import Path
from typing import Any

from upvit_mm.arguments import add_run_arguments
from upvit_mm.choices import WEIGHTS
from upvit_mm.cli import one_line_errors
from upvit_mm.files import sha256_of, write_text_atomically


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--metrics', help='write the metrics, with config and checkpoint, to this .json file')
    parser.add_argument(
        '--show-dir', help='write painted images to this folder in WORK_DIR/TIMESTAMP (classifiers: in WORK_DIR)'
    )
    parser.add_argument(
        '--weights', choices=WEIGHTS, help="averages or raw weights (default: those that the file's maker evaluates)"
    )
    parser.add_argument(
        '--allow-missing',
        nargs='+',
        default=[],
        metavar='PREFIX',
        help='parts of the model, for example bbox_head, that may stay random if the checkpoint has no fitting tensors',
    )
    add_run_arguments(parser)
    args = parser.parse_args()
    if args.out and Path(args.out).suffix not in ('.pkl', '.pickle'):
        parser.error(f'--out {args.out}: must end in .pkl or .pickle')
    return args


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    from upvit_mm.registry import scope_of
    from upvit_mm.runner import build_runner, end_together, load_config

    cfg = load_config(args)
    local = '://' not in args.checkpoint
    if local and not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f'checkpoint {args.checkpoint!r} does not exist; check the path.')
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show_dir:
        detector = dict(draw=True, test_out_dir=args.show_dir)
        classifier = dict(enable=True, interval=1, out_dir=str(Path(cfg.work_dir, args.show_dir)))
        hook = detector if scope_of(cfg) == 'mmdet' else classifier
        cfg.default_hooks.visualization.update(hook)
    runner = build_runner(cfg, ('test',), args.weights, args.allow_missing)
    if args.out:
        runner.test_evaluator.metrics.append(dump_to(args.out, scope_of(cfg)))
    metrics = runner.test()
    if args.metrics and runner.rank == 0:
        content = {'metrics': metrics, 'config': args.config, 'options': args.cfg_options or {}}
        content |= {'checkpoint': args.checkpoint} | ({'weights': args.weights} if args.weights else {})
        content |= {'data': sources(cfg), 'pictures': len(runner.test_loop.dataloader.dataset)}
        if local:
            content['sha256'] = sha256_of(args.checkpoint)
        text = json.dumps(content, indent=2, default=float) + '\n'
        write_text_atomically(args.metrics, text)
    end_together()


def sources(cfg: Any) -> list[str]:
    """The annotation file, else the folder, of each data set of the test."""
    from upvit_mm.data.datasets import datasets_in

    return [str(dataset.path(dataset.ann_file or dataset.images)) for dataset in datasets_in(cfg, 'test')]


def dump_to(path: str, scope: str | None) -> Any:
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults  # stores masks as RLE

        return DumpDetResults(out_file_path=path)
    from mmengine.evaluator import DumpResults

    return DumpResults(out_file_path=path)


if __name__ == '__main__':
    with one_line_errors():
        main()
