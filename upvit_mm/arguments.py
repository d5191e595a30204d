"""Arguments that several tools share. Importing this file takes no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


class OptionsAction(DictAction):
    """Arguments of the form ``key=value``; any other form is an error with the parser's usage."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        for word in [values] if isinstance(values, str) else values or []:
            if not word.partition('=')[0] or '=' not in word:
                parser.error(f'{option_string} {word!r}: must be key=value, lists as key="[a,b]" without blanks.')
        super().__call__(parser, namespace, values, option_string)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every run has, with mmdet's names."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='override settings of the config, as key=value; lists as key="[a,b]" without blanks',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
