import contextlib
import sys
from importlib import import_module

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


# ----------------------------------------------------------------- transformers


@pytest.fixture
def transformers(tmp_path, monkeypatch):
    """``transformers(**modules)``: install one of version 5.17.0 with these modules; others are not there."""

    def install(**modules):
        folder = tmp_path / 'transformers'
        distribution(tmp_path, 'transformers', '5.17.0')
        for name, text in {'__init__': '', **modules}.items():
            path = folder.joinpath(*name.split('.')).with_suffix('.py')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n__version__ = '5.17.0'\n")
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    def forget():
        openmmlab.transformers_problem.cache_clear()
        for name in [name for name in sys.modules if name.partition('.')[0] == 'transformers']:
            monkeypatch.delitem(sys.modules, name)

    forget()
    yield install
    forget()


def test_without_transformers_nothing_is_hidden(monkeypatch):
    monkeypatch.setattr(openmmlab, 'find_spec', lambda name: None)
    openmmlab.transformers_problem.cache_clear()
    assert openmmlab.transformers_problem() is None


@pytest.mark.parametrize(
    ('module', 'multimodal', 'problem'),
    [
        ("raise NameError('nn')", False, r'modeling_utils.PreTrainedModel (NameError: nn)'),
        ("raise ImportError('wants\\nhub<1.0')", False, 'modeling_utils.PreTrainedModel (ImportError: wants hub<1.0)'),
        ('PreTrainedModel = object', False, None),  # mmdet needs no more, and mmpretrain nothing
        ('PreTrainedModel = object', True, "AutoConfig (AttributeError: module 'transformers' has no attribute"),
    ],
)
def test_transformers_that_do_not_fit(transformers, monkeypatch, module, multimodal, problem):
    transformers(modeling_utils=module)
    monkeypatch.setattr('mmpretrain.utils.dependency.WITH_MULTIMODAL', multimodal)
    found = openmmlab.transformers_problem()
    if problem is None:
        assert found is None
    else:
        assert found.startswith(f'transformers 5.17.0 cannot give transformers.{problem}')


def test_transformers_that_fit(transformers, monkeypatch):
    """One that has whatever mmpretrain's files ask it for."""
    needed = openmmlab._needed_of_transformers()
    assert ('transformers.models.bert.configuration_bert', 'BertConfig') in needed
    assert len(needed) > 20
    anything = 'def __getattr__(name):\n    return type(name, (), {})\n'
    modules = {name.partition('.')[2]: anything for name, _ in needed if '.' in name}
    folders = {f'{name.rpartition(".")[0]}.__init__': '' for name in modules if '.' in name}
    transformers(**{'__init__': anything, 'models.__init__': '', **folders, **modules})
    monkeypatch.setattr('mmpretrain.utils.dependency.WITH_MULTIMODAL', True)
    assert openmmlab.transformers_problem() is None


def test_unfit_transformers_are_hidden_while_openmmlab_is_imported(transformers, run_python):
    """What mmpretrain and mmdet cannot be imported beside, in a process of its own; its owner still has it."""
    folder = transformers(modeling_utils="raise NameError('nn')", pytorch_utils='prune_linear_layer = None')
    start = f'import sys\nsys.path.insert(0, {str(folder)!r})\n'
    alone = run_python(f"""{start}
try:
    import mmpretrain.models
except (ImportError, NameError, TypeError) as error:
    print('refused')
""")
    assert alone == 'refused\n'
    told, *lines = run_python(f"""{start}
import logging
logging.getLogger('upvit_mm').addHandler(logging.StreamHandler(sys.stdout))
import upvit_mm.models
import mmdet.datasets, mmdet.models, mmpretrain.datasets
from mmdet.registry import MODELS
print(type(MODELS.build(dict(type='mmpretrain.LinearClsHead', num_classes=2, in_channels=4))).__name__)
try:
    MODELS.build(dict(type='mmpretrain.BlipCaption'))
except ImportError as error:
    print('multi-modal' in str(error))
import transformers, transformers.pytorch_utils
print(transformers.__version__)
""").splitlines()
    assert told.startswith('transformers 5.17.0 cannot give transformers.')
    assert 'are left out; nothing here needs them; for multimodal models: pip install "transformers<5"' in told
    assert lines[-3:] == ['LinearClsHead', 'True', '5.17.0']


def test_what_was_hidden_comes_back(transformers):
    transformers(pytorch_utils='')
    import transformers.pytorch_utils as before

    with pytest.raises(ImportError, match='No module named'), openmmlab._without('transformers'):
        import_module('transformers.pytorch_utils')
    assert sys.modules['transformers.pytorch_utils'] is before
