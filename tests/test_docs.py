"""What the pages say exists: links, paths and flags; what they show as Python compiles, and as bash parses."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')), *sorted(ROOT.glob('docs/*.md'))]
LINK = re.compile(r'\]\(([^)\s]+)\)')
CODE = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)
SPAN = re.compile(r'`([^`]+)`')
FILE = re.compile(r'(?<![\w./$*-])(?:tools|configs|docs|tests|upvit_mm)/[\w./-]+\.(?:py|sh|json|md|png)\b')
PROGRAM = re.compile(  # a launcher is its tool
    r'tools/(?:(?:dist|slurm)_)?(\w+)\.(?:py|sh)|-m upvit_mm\.(doctor)|(?:upvit-mm|-m upvit_mm) ([a-z][a-z-]*)'
)
FLAG = re.compile(r'(?<![\w-])--[a-z][a-z_-]*')


def text_of(page: Path) -> str:
    return page.read_text(encoding='utf-8')


def blocks_of(page: Path, language: str) -> list[str]:
    return [code for name, code in CODE.findall(text_of(page)) if name == language]


def commands_in(shell: str) -> list[tuple[str, list[str]]]:
    """Tool and flags of each command that runs one of ours."""
    lines = re.sub(r'(?m)(^|\s)#.*', '', shell.replace('\\\n', ' ')).splitlines()
    parts = [part for line in lines for part in re.split(r'&&|\|\||[;|]', line)]
    runs = [(match, part) for part in parts if (match := PROGRAM.search(part))]
    return [(match[match.lastindex].replace('-', '_'), FLAG.findall(part[match.end() :])) for match, part in runs]


class FoundError(Exception):
    """A tool has made its parser, and would now parse."""


@functools.cache
def flags_of(tool: str) -> set[str]:
    """What its parser knows, those of its subcommands included."""

    def stop(parser: argparse.ArgumentParser, *_) -> None:
        raise FoundError(parser)

    spec = importlib.util.spec_from_file_location(f'tool_{tool}', ROOT / f'tools/{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        with pytest.raises(FoundError) as found:
            module.main()
    (parser,) = found.value.args
    commands = [action.choices.values() for action in parser._actions if action.nargs == argparse.PARSER]
    return {flag for one in [parser, *itertools.chain(*commands)] for flag in one._option_string_actions}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = [target.split('#')[0] for target in LINK.findall(CODE.sub('', text_of(page))) if '://' not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize('page', [*PAGES, *sorted(ROOT.glob('docs/*.svg'))], ids=lambda page: page.name)
def test_files_exist(page):
    assert [path for path in FILE.findall(text_of(page)) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_flags_are_those_of_the_tools(page):
    shell = [*blocks_of(page, 'bash'), *SPAN.findall(CODE.sub('', text_of(page)))]
    commands = [command for code in shell for command in commands_in(code)]
    assert [(tool, flag) for tool, flags in commands for flag in flags if flag not in flags_of(tool)] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_python_compiles(page):
    for code in blocks_of(page, 'python'):
        compile(code, page.name, 'exec')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_bash_parses(page):
    for code in blocks_of(page, 'bash'):
        done = subprocess.run(['bash', '-n'], input=code, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ''), code


def test_the_tests_see_commands_and_flags():
    commands = commands_in(
        'NAME=x GPUS=8 tools/slurm_prune.sh P J \\\n    --per-class 5  # --no\nls --all; python tools/test.py --out a'
    )
    assert commands == [('prune', ['--per-class']), ('test', ['--out'])]
    assert commands_in('python -m upvit_mm.doctor C --gpus 8') == [('doctor', ['--gpus'])]
    assert commands_in('torchrun -m upvit_mm prune C --budget 1') == [('prune', ['--budget'])]
    assert commands_in('upvit-mm compare-detectors C --seeds 1') == [('compare_detectors', ['--seeds'])]
    assert {'--per-class', '--tie-qkv', '--budget', '--launcher'} <= flags_of('prune')
    assert {'--amp', '--cfg-options'} <= flags_of('train')
    assert '--out' not in flags_of('train')
    assert {'--gpus', '--batch-size', '--cfg-options'} <= flags_of('doctor')
    assert {'--pruned-arch', '--dense'} <= flags_of('check_consistency')
    assert '--depth' in flags_of('benchmark')
    assert sum(len(commands_in(code)) for page in PAGES for code in blocks_of(page, 'bash')) > 40
