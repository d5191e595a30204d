"""Run a tool of this package: upvit-mm TOOL ... is python tools/TOOL.py ... of a clone.

Several processes: torchrun --nproc_per_node=GPUS -m upvit_mm TOOL ... --launcher pytorch
"""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from upvit_mm.cli import one_line_errors
from upvit_mm.installed import TOOLS
from upvit_mm.version import __version__


def purpose_of(tool: Path) -> str:
    """The start of a tool's docstring, in one line."""
    return textwrap.shorten(ast.get_docstring(ast.parse(tool.read_text(encoding='utf-8'))), 92, placeholder=' ...')


def parse_args() -> argparse.Namespace:
    """The tool, as ``tool``, and its own arguments, as ``words``."""
    tools = {path.stem.replace('_', '-'): path for path in sorted(TOOLS.glob('*.py'))}
    listed = '\n'.join(f'  {name:23} {purpose_of(path)}' for name, path in tools.items())
    parser = argparse.ArgumentParser(
        'upvit-mm',
        description=__doc__,
        epilog=f'tools (upvit-mm TOOL --help has their arguments):\n{listed}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=__version__)
    parser.add_argument('tool', metavar='TOOL', choices=tools, type=lambda word: word.replace('_', '-'))
    parser.add_argument('words', metavar='...', nargs=argparse.REMAINDER, help='arguments of the tool')
    args = parser.parse_args()
    args.path = tools[args.tool]
    return args


def main() -> None:
    """Run the tool that the command line names."""
    args = parse_args()
    sys.argv = [f'upvit-mm {args.tool}', *args.words]  # the tool's usage and the reports show this command
    spec = spec_from_file_location(f'upvit_mm_tool_{args.path.stem}', args.path)
    tool = module_from_spec(spec)
    with one_line_errors():
        spec.loader.exec_module(tool)
        sys.exit(tool.main())


if __name__ == '__main__':
    main()
