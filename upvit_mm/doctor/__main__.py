"""Find problems of this installation and, if one is given, of a config of mmdet or mmpretrain.

Exit status: 0 without errors, 1 with errors.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

import upvit_mm.doctor.environment
import upvit_mm.doctor.model
import upvit_mm.doctor.training  # noqa: F401 (these three fill CHECKS)
from upvit_mm.cli import one_line_errors
from upvit_mm.doctor.findings import CHECKS, Finding, examine
from upvit_mm.doctor.isolation import Isolation
from upvit_mm.doctor.subject import Subject

COLOURS = {'ok': 'green', 'warning': 'yellow', 'error': 'red'}
INDENT = 9


def parse_args(words: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = argparse.ArgumentParser('python -m upvit_mm.doctor', description=__doc__)
    parser.add_argument('config', nargs='?', help='config file of mmdet or mmpretrain')
    parser.add_argument('checkpoint', nargs='?', help="weights to check (default: those that the config's model loads)")
    parser.add_argument('--batch-size', type=int, help="images per GPU (default: the config's)")
    parser.add_argument('--gpus', type=int, help='GPUs of the training (default: those of this machine, at least 1)')
    parser.add_argument('--json', action='store_true', help='print a list of {check, status, found, remedy}')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='override settings of the config, as key=value')
    args = parser.parse_args(words)
    if args.config is None and (args.batch_size or args.gpus or args.cfg_options):
        parser.error('--batch-size, --gpus and --cfg-options belong to a config, and none is given')
    if wrong := [word for word in args.cfg_options if '=' not in word]:
        parser.error(f'--cfg-options {wrong[0]!r}: must be key=value')
    return args


def show(findings: Iterable[Finding], console: Console) -> None:
    """Print findings directly, below the name of their section."""
    section = None
    for finding in findings:
        if finding.check in CHECKS and CHECKS[finding.check].section != section:
            section = CHECKS[finding.check].section
            console.print(Text(section, style='bold'))
        status = Text(f'{finding.status:{INDENT}}', style=COLOURS[finding.status])
        console.print(status + f'{finding.check}: {_indented(finding.found)}')
        if finding.remedy:
            console.print(f'{"":{INDENT}}-> {_indented(finding.remedy)}')


def _indented(text: str) -> str:
    return text.replace('\n', f'\n{"":{INDENT}}')


def main(words: list[str] | None = None) -> int:
    """Exit status."""
    args = parse_args(words)
    subject = None
    if args.config is not None:
        subject = Subject(args.config, args.checkpoint, args.batch_size, args.gpus, tuple(args.cfg_options))
    checks = [check for check in CHECKS.values() if subject or check.section == 'environment']
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with Isolation(subject) as run:
        findings = []
        coming = (findings.append(finding) or finding for finding in examine(checks, run))
        if args.json:
            print(json.dumps([dataclasses.asdict(finding) for finding in coming], indent=2))
        else:
            show(coming, console)
            counts = {status: sum(f.status == status for f in findings) for status in COLOURS}
            console.print(', '.join(f'{number} {status}' for status, number in counts.items()))
    return int(any(finding.status == 'error' for finding in findings))


if __name__ == '__main__':
    with one_line_errors():
        sys.exit(main())
