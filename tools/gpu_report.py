"""Report what runs on this machine's GPU and how fast: tests, backbones beside timm's and mmdet's, scoring, detectors.

It needs no data and takes at most 8 minutes. Each part has its own limit and its own process; a part that fails says so
in the report. Without a GPU, or with --small, everything runs through in a small setting, whose times mean nothing.
"""

import argparse
from pathlib import Path

from rich.console import Console

from upvit_mm.benchmark.gpu.parts import PARTS, TIME_LIMIT
from upvit_mm.cli import check_device, default_device, one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--work-dir', default='work_dirs/gpu', help='gets report.json, report.md and a log of each part'
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda if there is one; cpu means --small')
    parser.add_argument('--small', action='store_true', help='tiny networks and images')
    parser.add_argument('--time-limit', type=float, default=TIME_LIMIT, help='seconds of all parts together')
    names = [part.name for part in PARTS]
    parser.add_argument('--parts', nargs='+', choices=names, default=names, help='only these')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from upvit_mm.benchmark.gpu.report import make_report

    device = args.device or default_device()
    check_device(device)
    setting = 'small' if args.small or device == 'cpu' else 'full'
    console, folder = Console(soft_wrap=True), Path(args.work_dir)
    parts = [part for part in PARTS if part.name in args.parts]
    record = make_report(folder, setting, device, args.time_limit, parts, console.print)
    met = [goal['met'] for goal in record['goals'] if goal['met'] is not None]
    console.print(f'{sum(met)} of {len(met)} measured goals are met; see {folder / "report.md"}')


if __name__ == '__main__':
    with one_line_errors():
        main()
