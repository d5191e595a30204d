"""The site of docs/: it builds without a warning, needs no network, and a broken link stops it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REMOTE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="?((?:https?:)?//[^"\s>]*)')
FAULTS = {  # Markdown, and what the build says is missing
    '[page](absent-page.md)': 'absent-page.md',
    '[anchor](pruning.md#absent-anchor)': '#absent-anchor',
    '![picture](absent.png)': 'absent.png',
    '[repository](../configs/absent.py)': 'source/configs/absent.py',
    '[absolute](/absolute.md)': '/absolute.md',
}


def build(root: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'mkdocs', 'build', '--config-file', root / 'mkdocs.yml', '--site-dir', site]
    environment = os.environ | {'NO_MKDOCS_2_WARNING': '1'}  # the theme's advertisement
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('site')
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site):
    pages = {page.stem for page in site.glob('*.html')} - {'404'}
    assert pages == {page.stem for page in ROOT.glob('docs/*.md')}
    assert {'index', 'coco', 'own_data', 'pruning', 'multi_gpu', 'troubleshooting', 'architecture'} <= pages


def test_nothing_comes_from_the_network(site):
    assert REMOTE.findall('<link rel=stylesheet href="https://a.host/a.css"> <script src=//b.host/b.js></script>') == [
        'https://a.host/a.css',
        '//b.host/b.js',
    ]
    assert {page.name: urls for page in site.glob('*.html') if (urls := REMOTE.findall(page.read_text('utf-8')))} == {}


def test_linked_files_of_the_repository_are_copied(site):
    config = 'configs/detection/retinanet_up-pvtv2-b0_fpn_1x_coco.py'
    assert f'href="source/{config}"' in (site / 'model_zoo.html').read_text('utf-8')
    assert (site / 'source' / config).read_bytes() == (ROOT / config).read_bytes()


def test_faults_stop_the_build(tmp_path):
    shutil.copytree(ROOT / 'docs', tmp_path / 'docs')
    for name in ('mkdocs.yml', 'metafile.yml', 'configs'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'docs/stray.md').write_text('# Not in the navigation')
    with (tmp_path / 'docs/coco.md').open('a') as page:
        page.write('\n\n'.join(['', *FAULTS]))
    done = build(tmp_path, tmp_path / 'site')
    assert done.returncode != 0
    assert [what for what in ('stray.md', *FAULTS.values()) if what not in done.stderr] == []
    assert done.stderr.count('WARNING') == 1 + len(FAULTS)
