"""The experiment of docs/evidence.md: dense, pruned and rival networks on real photographs, paired by seed.

Repeat the command to continue: finished steps are not run again, and a training goes on from its last epoch. The report
covers all that is finished in the work dir.
"""

import argparse
import sys
from pathlib import Path

from upvit_mm.cli import one_line_errors
from upvit_mm.evidence.studies import RANKS, SCALES, check_run, studies_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--scale', choices=SCALES, default='cpu', help='sizes and epochs (default: cpu)')
    parser.add_argument('--data', nargs='+', default=[], help='bccd, nuclei, cifar10 (default: all)')
    parser.add_argument('--families', nargs='+', default=[], help='ViT-S, PVTv2-B0, DeiT-micro (default: all)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument(
        '--ranks',
        type=int,
        nargs='+',
        choices=RANKS,
        default=RANKS,
        help='0: the rows of the main claim; 1: without a teacher; 2: a quarter, magnitude; 3: random, long vanilla',
    )
    parser.add_argument('--jobs', type=int, default=1, help='steps at a time (default: 1)')
    parser.add_argument('--threads', type=int, help="threads of each step (default: torch's, shared by the jobs)")
    parser.add_argument('--time-limit', type=float, metavar='MINUTES', help='stop then; default: none')
    parser.add_argument('--report-only', action='store_true', help='run nothing')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/evidence'))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    studies = studies_of(args.data, args.families)
    check_run(studies, args.jobs, args.report_only)
    # after parsing: it imports torch, which takes seconds
    from upvit_mm.evidence import experiment

    options = {name: value for name, value in vars(args).items() if name not in ('data', 'families')}
    state = experiment.conduct(studies, experiment.Options(**options))
    if failed := [name for name, how in state.items() if how == 'failed']:
        sys.exit(f'error: failed: {", ".join(failed)}; the logs are in {args.work_dir / args.scale / "logs"}')


if __name__ == '__main__':
    with one_line_errors():
        main()
