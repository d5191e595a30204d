"""Arguments that several tools share, and that parsers answer a typo before torch is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from upvit_mm.choices import CRITERIA

ROOT = Path(__file__).parents[1]
TOOLS = sorted(path.stem for path in ROOT.glob('tools/*.py'))
PARSE = """
import argparse, contextlib, io, runpy, sys
for module in ('torch', 'mmcv', 'mmdet', 'mmpretrain'):
    sys.modules[module] = None  # an import of it raises an error
for tool, *words in {cases}:
    sys.argv = [tool, *words]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        runpy.run_path(f'tools/{{tool}}.py', run_name='__main__')
    print(tool, said.getvalue().splitlines()[-1])
"""


def answers(run_python, cases: list[list[str]]) -> list[str]:
    return run_python(PARSE.format(cases=cases)).splitlines()


def test_every_tool_answers_a_typo_without_torch(run_python):
    said = answers(run_python, [[tool, '--no-such-option'] for tool in TOOLS])
    assert len(said) == len(TOOLS) >= 16
    for tool, line in zip(TOOLS, said):
        assert line.startswith(f'{tool} ')
        assert ': error: ' in line


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['prune', 'c', 'w', '--work-dir', 'o', '--method', 'fishr'], "--method: invalid choice: 'fishr'"),
        (['prune', 'c', 'w', '--work-dir', 'o', '--head-policy', 'x'], "--head-policy: invalid choice: 'x'"),
        (['test', 'c', 'w', '--cfg-options', 'a=1', '--weights', 'x'], "--weights: invalid choice: 'x'"),
        (['train', 'c', '--cfg-options', 'a'], "--cfg-options 'a': must be key=value"),
        (['train', 'c', '--cfg-options', 'a=[1,2]', '--ammp'], 'unrecognized arguments: --ammp'),
        (['export_onnx', 'c', 'w', '--out', 'o', '--part', 'x'], "--part: invalid choice: 'x'"),
        (['benchmark', 'repair', 'c', 'w', '--widths', 'x'], "--widths: invalid choice: 'x'"),
    ],
)
def test_values_are_checked_without_torch(run_python, words, said):
    (line,) = answers(run_python, [words])
    assert said in line


def test_criteria_are_those_of_the_code():
    from upvit_mm.models.detector_loss import DetectorLoss
    from upvit_mm.pruning.criteria import Posterior, ReadTokensChange

    assert (Posterior.name, ReadTokensChange.name, DetectorLoss.name) == CRITERIA
