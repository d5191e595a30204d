import contextlib
import sys

import pytest
from mmengine.config import Config

from upvit_mm import openmmlab
from upvit_mm.openmmlab import SUPPORTED, installed_version, require_mmcv_ops, require_openmmlab
from upvit_mm.runner import build_runner

MODULES = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')


def distribution(folder, name, version):
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


def package(folder, name, version_file=None):
    (folder / name).mkdir()
    (folder / name / '__init__.py').write_text('raise RuntimeError("imported")')
    if version_file is not None:
        (folder / name / 'version.py').write_text(version_file)


# ------------------------------------------------------------ what is installed


@pytest.mark.parametrize('module', MODULES)
def test_installed_version_is_what_the_module_says(module):
    assert installed_version(module) == __import__(module).__version__


def test_this_environment_is_supported():
    assert tuple(SUPPORTED) == MODULES
    require_openmmlab()
    require_mmcv_ops()


def test_version_of_a_source_checkout_is_read_without_importing_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, 'mm_checkout', "# comment\n__version__ = '1.2.3'\nother = '4'\n")
    package(tmp_path, 'mm_bare')
    for module in ('mm_checkout', 'mm_bare', 'mm_absent'):
        monkeypatch.setitem(SUPPORTED, module, ('1.0', '2.0', ('no-such-distribution',)))
    assert [installed_version(m) for m in ('mm_checkout', 'mm_bare', 'mm_absent')] == ['1.2.3', None, None]


# ------------------------------------------------------------------ wrong ones


@pytest.mark.parametrize(('version', 'ok'), [('3.2.9', False), ('3.3.0', True), ('3.99', True), ('4.0.0', False)])
def test_window_of_versions(tmp_path, monkeypatch, version, ok):
    monkeypatch.syspath_prepend(tmp_path)
    distribution(tmp_path, 'onedl-mmdetection', version)
    outcome = (
        contextlib.nullcontext() if ok else pytest.raises(ImportError, match=rf'mmdet is {version} .*>=3.3.0,<4.0.0')
    )
    with outcome:
        require_openmmlab()


def test_all_problems_come_in_one_error_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    distribution(tmp_path, 'onedl-mmdetection', '2.28.2')
    distribution(tmp_path, 'onedl-mmcv', '1.7.0')
    monkeypatch.setitem(SUPPORTED, 'mm_absent', ('1.0', '2.0', ('no-such-distribution',)))
    with pytest.raises(ImportError, match='cannot run here') as info:
        require_openmmlab()
    for part in (
        'mmcv is 1.7.0 (supported: >=2.1.0,<2.4.0)',
        'mmdet is 2.28.2 (supported: >=3.3.0,<4.0.0)',
        'mm_absent is not installed (supported: >=1.0,<2.0)',
        'onedl-mmengine==',
        'stock: torch==2.4.1 mmengine==0.10.7 mmcv==2.1.0 mmdet==3.3.0 mmpretrain==1.2.0',
    ):
        assert part in str(info.value)
    assert 'mmengine is' not in str(info.value)


def test_odd_version_is_outside_every_window(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, 'mm_odd', "__version__ = 'main-build'\n")
    monkeypatch.setitem(SUPPORTED, 'mm_odd', ('1.0', '2.0', ('no-such-distribution',)))
    with pytest.raises(ImportError, match='mm_odd is main-build'):
        require_openmmlab()


def test_the_fix_names_supported_versions():
    """The hint's pins lie inside the windows."""
    for line in openmmlab.INSTALL_HINT.splitlines()[1:3]:
        pins = dict(pin.split('==') for pin in line.split()[1:])
        for module, (low, high, distributions) in SUPPORTED.items():
            (version,) = [v for name, v in pins.items() if name in distributions]
            assert openmmlab._within(version, low, high), f'{module} {version}'


def test_mmcv_without_operators(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    with pytest.raises(ImportError, match=r'has no working operators .* --no-build-isolation'):
        require_mmcv_ops()


def test_a_detector_is_refused_without_them_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    with pytest.raises(ImportError, match='has no working operators'):
        build_runner(Config(dict(default_scope='mmdet')), ('train',))
