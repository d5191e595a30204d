"""Rules of the house that no linter knows: sizes of files and functions, docstrings, plain words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted([*ROOT.glob('upvit_mm/**/*.py'), *ROOT.glob('tools/*.py')])
TESTS = sorted(ROOT.glob('tests/**/*.py'))
PAGES = sorted([ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *ROOT.glob('docs/*.md')])
LONGEST_FILE, LONGEST_FUNCTION = 350, 45  # lines
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, Function):
            yield node


def length(node: ast.AST) -> int:
    """Lines of a function without its docstring, which explains and does nothing."""
    doc = node.body[0] if ast.get_docstring(node) else None
    return node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)


def undocumented(node: ast.Module | ast.ClassDef, where: str) -> Iterator[str]:
    """Public classes and functions of a module without a docstring; what a decorator registers has its text there."""
    for child in node.body:
        if not isinstance(child, (*Function.__args__, ast.ClassDef)) or child.name.startswith('_'):
            continue
        if isinstance(node, ast.Module) and not (ast.get_docstring(child) or child.decorator_list):
            yield f'{where}: {child.name}'
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f'{where}: {child.name}')


def test_files_are_short():
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding='utf-8') for path in [*CODE, *TESTS]}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    assert not {path: count for path, count in lines.items() if count > LONGEST_FILE}


def test_functions_are_short():
    long = {
        f'{path.relative_to(ROOT)}:{node.lineno} {node.name}': length(node)
        for path in CODE
        for node in functions(path)
        if length(node) > LONGEST_FUNCTION
    }
    assert not long


def test_what_is_public_has_a_docstring():
    trees = {path: ast.parse(path.read_text(encoding='utf-8')) for path in CODE}
    assert not [str(path.relative_to(ROOT)) for path, tree in trees.items() if not ast.get_docstring(tree)]
    package = {path: tree for path, tree in trees.items() if 'tools' not in path.parts}
    assert not [text for path, tree in package.items() for text in undocumented(tree, str(path.relative_to(ROOT)))]


@pytest.mark.parametrize(
    ('word', 'instead'),
    [
        (r'foretell\w*|foretold', 'predict'),
        (r'mend(?:s|ed|ing)?', 'fix'),
        (r'whence|whither|thereof|therein|hitherto|heretofore|albeit|lest', 'a common word'),
    ],
)
def test_words_are_common(word, instead):
    found = [
        f'{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}'
        for path in [*CODE, *PAGES]
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1)
        if re.search(rf'\b_?({word})\b', line, re.IGNORECASE)
    ]
    assert not found, instead
