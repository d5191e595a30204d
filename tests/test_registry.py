"""One way to say what a config's ``type`` means, whatever it is written as."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import DATASETS, METRICS

from upvit_mm.models import UPDeiT
from upvit_mm.registry import MODELS, class_of, is_type, scope_of, type_name

ROOT = Path(__file__).parents[1]
# a type that is compared as text; `device.type` is another matter
RAW = re.compile(
    r"""(get\('type'\)|\['type'\]|(?<!device)\.type\b|type_name\(.*?\))\)?\s*"""
    r"""(==|!=|in\b|not in\b|\.endswith|\.rpartition)"""
)


@pytest.fixture
def fruit(monkeypatch):
    """A data set of a user: registered under two names, a subclass of mmdet's."""
    import mmdet.datasets
    from mmdet.registry import DATASETS as MMDET_DATASETS

    class FruitDataset(mmdet.datasets.CocoDataset):
        pass

    for name in ('Fruit', 'OwnCoco'):
        monkeypatch.setitem(MMDET_DATASETS._module_dict, name, FruitDataset)
    return FruitDataset


@pytest.mark.parametrize(
    'kind',
    [
        'CocoDataset',
        'mmdet.CocoDataset',
        'mmdet.datasets.coco.CocoDataset',  # as a new-style config is dumped
        LazyObject('mmdet.datasets', 'CocoDataset'),
        LazyAttr('CocoDataset', LazyObject('mmdet.datasets')),
    ],
    ids=str,
)
def test_a_type_is_the_same_however_it_is_written(kind):
    from mmdet.datasets import CocoDataset

    assert type_name(kind) == 'CocoDataset'
    assert class_of(kind, DATASETS, 'mmdet') is CocoDataset
    assert is_type(kind, 'CocoDataset', registry=DATASETS, scope='mmdet')
    assert is_type(kind, 'mmpretrain.CustomDataset', 'mmdet.CocoDataset', registry=DATASETS, scope='mmdet')
    assert not is_type(kind, 'CustomDataset', registry=DATASETS, scope='mmdet')


def test_classes_aliases_and_subclasses(fruit):
    assert type_name(fruit) == 'FruitDataset'
    for kind in (fruit, 'Fruit', 'mmdet.OwnCoco'):
        assert class_of(kind, DATASETS, 'mmdet') is fruit
        assert is_type(kind, 'CocoDataset', registry=DATASETS, scope='mmdet')
        assert is_type(kind, 'FruitDataset', registry=DATASETS, scope='mmdet')
    assert not is_type(
        'CocoDataset', 'FruitDataset', registry=DATASETS, scope='mmdet'
    )  # a class is no subclass of its own
    assert is_type('CocoOccludedSeparatedMetric', 'CocoMetric', registry=METRICS, scope='mmdet')


def test_types_of_this_package():
    assert class_of('upvit_mm.UPDeiT', MODELS) is UPDeiT
    assert is_type(UPDeiT, 'upvit_mm.UPDeiT', registry=MODELS)
    assert not is_type(UPDeiT, 'upvit_mm.UPPVTv2', registry=MODELS)


def test_what_is_not_registered_is_known_by_its_name_alone():
    assert class_of('NoSuch', DATASETS, 'mmdet') is None
    assert class_of('mmdet.NoSuch', DATASETS, 'mmdet') is None
    assert class_of('other.package.NoSuch', DATASETS, 'mmdet') is None
    assert is_type('other.package.NoSuch', 'NoSuch', registry=DATASETS, scope='mmdet')
    assert not is_type('NoSuch', 'CocoDataset', registry=DATASETS, scope='mmdet')


def test_the_scope_of_a_config():
    """New-style configs have no ``default_scope``, and classes as types."""
    from mmdet.models import RetinaNet
    from mmpretrain.models import ImageClassifier

    from upvit_mm.models import DistillClassifier

    assert scope_of(dict(default_scope='mmdet')) == 'mmdet'
    assert scope_of(dict(default_scope=None, model=dict(type=RetinaNet))) == 'mmdet'
    assert scope_of(dict(model=dict(type='mmpretrain.ImageClassifier'))) == 'mmpretrain'
    for kind in (ImageClassifier, DistillClassifier):
        assert scope_of(dict(model=dict(type=kind))) == 'mmpretrain'
    for model in (None, dict(type='NoSuch'), dict(type=UPDeiT)):
        assert scope_of(dict(model=model)) is None


def test_nothing_is_no_type():
    assert type_name(None) == ''
    assert class_of(None, DATASETS) is None
    assert not is_type(None, 'CocoDataset', '', registry=DATASETS)


def test_no_type_is_compared_as_text():
    """`registry.py` itself does, and `checkpoints/` reads configs as text, without a registry."""
    lines = [
        f'{path.relative_to(ROOT)}: {line.strip()}'
        for folder in ('upvit_mm', 'tools')
        for path in sorted((ROOT / folder).rglob('*.py'))
        if path.name != 'registry.py' and path.parent.name != 'checkpoints'
        for line in path.read_text(encoding='utf-8').splitlines()
        if RAW.search(line)
    ]
    assert lines == []
    assert RAW.search("if cfg.model.type != 'X':")
    assert RAW.search("settings.get('type') in TYPES")
    assert not RAW.search("if device.type == 'cuda':")
