"""The tests that need a GPU."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from upvit_mm.benchmark.gpu.notebook import Notebook
from upvit_mm.benchmark.gpu.setting import Setting

ROOT = Path(__file__).parents[3]


def run_tests(setting: Setting, device: str, notebook: Notebook) -> None:
    """Run pytest on the clone, in this process, which is made for it.

    Raises:
        ImportError: pytest is not installed.
        FileNotFoundError: the package is installed without its tests.
        RuntimeError: a test fails, or none is found.
    """
    import pytest

    if not (ROOT / 'tests').is_dir():
        raise FileNotFoundError(f'{ROOT} has no tests/: run the report in a clone of the repository.')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'tests.xml')
        os.chdir(ROOT)
        status = int(pytest.main(['-q', f'--junitxml={path}', *setting.tests]))
        if not path.is_file():
            raise RuntimeError(f'pytest ended with status {status} and without results.')
        suites = ElementTree.parse(path).getroot()
    cases = [(case, {child.tag for child in case}) for case in suites.iter('testcase')]
    failed = [case.get('name') for case, tags in cases if tags & {'failure', 'error'}]
    skipped = sum('skipped' in tags for _, tags in cases)
    notebook.add(work='tests', passed=len(cases) - len(failed) - skipped, failed=len(failed), skipped=skipped)
    if failed or status:
        raise RuntimeError(f'{len(failed)} of {len(cases)} tests fail: {", ".join(failed[:5])} (status {status}).')
