"""What may import what, and that the wheel and the pure parts do without OpenMMLab."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'upvit_mm'
OPENMMLAB = {'mmengine', 'mmcv', 'mmdet', 'mmpretrain'}

# part of the package -> parts it may import; the root modules choices, files and version are open to all
ALLOWED = {
    'arch': set(),
    'pruning': {'arch'},
    'checkpoints': {'arch'},
    # checkpoints: a backbone's load hook; pruning: the plan that a distilled student comes from
    'models': {'arch', 'pruning', 'checkpoints', 'registry', 'openmmlab'},
    'optim': {'models', 'registry'},  # models: whose parameters decay
    'data': {'arch', 'pruning', 'models', 'registry'},
    'consistency': {'arch', 'pruning', 'models', 'data'},
    'hooks': {'arch', 'checkpoints', 'consistency', 'data', 'models', 'registry', 'stopwatch', 'quiet_log'},
    'workflow': {'arch', 'pruning', 'checkpoints', 'models', 'data', 'hooks', 'registry'}
    | {'runner', 'launch', 'cli', 'stopwatch', 'table', 'openmmlab'},
    'compare': {'arch', 'pruning', 'checkpoints', 'models', 'data', 'consistency', 'workflow', 'registry', 'openmmlab'}
    | {'runner', 'cli', 'stopwatch', 'table'},
    # compare: how a difference is judged and written
    'benchmark': {'arch', 'pruning', 'checkpoints', 'models', 'data', 'consistency', 'workflow', 'compare', 'registry'}
    | {'cli', 'installed', 'stopwatch', 'table'},
    'evidence': {'pruning', 'compare', 'consistency', 'workflow', 'cli', 'installed', 'launch', 'quiet_log'}
    | {'stopwatch', 'table'},
    'export': {'arch', 'checkpoints', 'models', 'registry', 'stopwatch'},
    'doctor': {'arch', 'checkpoints', 'models', 'optim', 'data', 'registry', 'openmmlab', 'runner', 'arguments', 'cli'},
    # root modules
    '__main__': {'cli', 'installed'},
    'arguments': set(),
    'installed': set(),
    'launch': set(),
    'registry': {'arch'},
    'openmmlab': set(),
    'stopwatch': set(),
    'table': set(),
    'cli': set(),
    'quiet_log': set(),
    'runner': {'data', 'models', 'optim', 'registry', 'launch', 'openmmlab', 'quiet_log'},
}
OPEN = ('choices', 'files', 'version', '__init__')  # to all
PURE = ('arch', 'pruning', 'choices', 'files')  # no import of OpenMMLab, not even indirectly

# a finder that does not find OpenMMLab, as if it were not installed
WITHOUT_OPENMMLAB = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        missing = name.split('.')[0] in {sorted(OPENMMLAB)}
        return None if missing else self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
"""


def files_of(part: str) -> list[Path]:
    single = PACKAGE / f'{part}.py'
    return [single] if single.is_file() else sorted((PACKAGE / part).rglob('*.py'))


def imports_of(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path} has a relative import'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def test_every_part_has_its_rule():
    parts = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob('*.py'))}
    roots = {p.stem for p in PACKAGE.glob('*.py')} - set(OPEN)
    assert parts | roots == set(ALLOWED)


@pytest.mark.parametrize('part', ALLOWED)
def test_direction_of_imports(part):
    parts = {name.split('.')[1] for path in files_of(part) for name in imports_of(path) if name.startswith('upvit_mm.')}
    assert parts - {part, *OPEN, '__version__'} == ALLOWED[part]  # a right that nobody uses goes


@pytest.mark.parametrize('part', PURE)
def test_pure_parts_name_no_openmmlab(part):
    assert not {name for path in files_of(part) for name in imports_of(path) if name.split('.')[0] in OPENMMLAB}


def test_pure_parts_import_without_openmmlab(run_python):
    paths = [path.relative_to(ROOT).with_suffix('') for part in PURE for path in files_of(part)]
    modules = ['.'.join(path.parts).removesuffix('.__init__') for path in paths]
    assert {'upvit_mm.arch', 'upvit_mm.arch.zoo', 'upvit_mm.files'} <= set(modules)
    code = f"""{WITHOUT_OPENMMLAB}
import importlib
for module in {modules}:
    importlib.import_module(module)
print(sorted({{name.split('.')[0] for name in sys.modules}} & {OPENMMLAB}))
"""
    assert run_python(code) == '[]\n'


def test_models_without_openmmlab_raise_one_error_that_says_what_to_do(run_python):
    code = f"""{WITHOUT_OPENMMLAB}
try:
    import upvit_mm.models
except ImportError as error:
    print(type(error).__name__, error.__cause__, error.__context__)
    print(error)
"""
    first, message, *hint = run_python(code).splitlines()
    assert first == 'ImportError None None'
    for module in OPENMMLAB:
        assert re.search(rf'{module} is not installed \(supported: >=[\d.]+,<[\d.]+\)', message)
    assert 'mmdet==3.3.0' in '\n'.join(hint)
    assert 'onedl-mmdetection==' in '\n'.join(hint)


def test_wheel_requires_no_distribution_of_openmmlab(run_python, tmp_path):
    """The stock and the onedl distributions own the same modules, so neither may be pulled in."""
    code = f"""
import os
from setuptools import build_meta
print()
print(build_meta.prepare_metadata_for_build_wheel({str(tmp_path)!r}))
"""
    egg_info = ROOT / 'upvit_mm.egg-info'
    before = egg_info.exists()
    info = tmp_path / run_python(code).splitlines()[-1]
    assert egg_info.exists() == before, 'the test left a folder behind'
    metadata = (info / 'METADATA').read_text(encoding='utf-8')
    required = re.findall(r'^Requires-Dist: ([\w-]+)', metadata, re.MULTILINE)
    assert {'torch', 'timm', 'safetensors', 'numpy'} <= set(required)
    assert [name for name in required if name.startswith(('mm', 'onedl', 'openm'))] == []
