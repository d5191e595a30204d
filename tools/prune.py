"""Prune a dense DeiT or PVTv2 classifier (mmpretrain config) to a smaller architecture."""

import argparse
from dataclasses import fields
from pathlib import Path

from mmengine.config import Config

from upvit_mm.arch import resolve_arch
from upvit_mm.cli import one_line_errors
from upvit_mm.prune import METHODS, Settings, prune
from upvit_mm.pruning import HEAD_POLICIES


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='mmpretrain config of the dense classifier')
    parser.add_argument('checkpoint', help='its weights, in any known layout')
    parser.add_argument('--target', required=True, help='architecture to reach: a stock name or an arch.json')
    parser.add_argument('--work-dir', type=Path, required=True, help='folder for scores, plan and the pruned network')
    parser.add_argument('--method', choices=METHODS, default='fisher', help='of scoring')
    parser.add_argument('--draws', type=int, default=4, help='backward passes an image (fisher)')
    parser.add_argument('--per-class', type=int, default=5, help='images of every class in the proxy set')
    parser.add_argument('--head-policy', choices=HEAD_POLICIES, default='within', help='what happens to heads')
    parser.add_argument('--tie-qkv', action='store_true', help='one index set for q, k and v')
    parser.add_argument('--compensate', action='store_true', help='re-solve the linear layers after slicing')
    parser.add_argument('--ridge', type=float, default=1e-3, help='of the compensation')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--eval-images', type=int, default=1000, help='held-out images to judge the result on, at most')
    parser.add_argument('--batch-size', type=int, default=32, help='images at once')
    parser.add_argument('--max-rows', type=int, default=256, help='images x candidates at once (kl); bounds memory')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    cfg = Config.fromfile(args.config)
    outcome = prune(cfg, args.checkpoint, resolve_arch(args.target), args.work_dir, settings)
    for name, figures in outcome.held_out.items():
        print(f'{name}: top-1 {figures["top1"]:.2f} %, KL to the dense network {figures["kl"]:.4f} (held-out images)')
    print(f'{args.work_dir}: arch.json and sliced.pth')


if __name__ == '__main__':
    with one_line_errors():
        main()
